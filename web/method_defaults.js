// Each method learns at a rate of its own: choosing one sets the steps and the rate that suit it,
// unless the user has set others. The numbers come with the schema, from imagic_core/finetune.py.
import { app } from "/scripts/app.js";

app.registerExtension({
  name: "Imagic.MethodDefaults",
  nodeCreated(node) {
    if (node.comfyClass !== "ImagicFinetuneModel") return;
    const defaults = node.constructor.nodeData.input.required.method[1].method_defaults;
    const widget = (name) => node.widgets.find((one) => one.name === name);
    const chosen = widget("method").callback;
    widget("method").callback = function (method, ...rest) {
      for (const [name, value] of Object.entries(defaults[method] ?? {})) {
        const untouched = Object.values(defaults).some((one) => one[name] === widget(name).value);
        if (untouched) widget(name).value = value;
      }
      return chosen?.call(this, method, ...rest);
    };
  },
});
