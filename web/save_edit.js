// %date:yyyy-MM-dd% and %Node.widget% in the name of an edit, which the front end replaces only for
// a list of core nodes.
import { app } from "/scripts/app.js";
import { applyTextReplacements } from "/scripts/utils.js";

app.registerExtension({
  name: "Imagic.SaveEdit",
  nodeCreated(node) {
    if (node.comfyClass !== "ImagicSaveEdit") return;
    const prefix = node.widgets.find((one) => one.name === "filename_prefix");
    prefix.serializeValue = () => applyTextReplacements(app, prefix.value);
  },
});
