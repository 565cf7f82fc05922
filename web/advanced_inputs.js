// The classic canvas hides an input that asks to be advanced only if the widget itself says so, and
// shows it again by "Show Advanced" in the node's menu. Newer renderings read the schema.
import { app } from "/scripts/app.js";

app.registerExtension({
  name: "Imagic.AdvancedInputs",
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("Imagic")) return;
    const hidden = (node.widgets ?? []).filter((widget) => widget.options?.advanced);
    if (!hidden.length) return;
    for (const widget of hidden) widget.advanced = true;
    node.setSize([node.size[0], node.computeSize()[1]]);
  },
});
