// Each method learns at a rate of its own: choosing one sets the steps and the rate that suit it,
// unless the user has set others. The numbers are those of imagic_core/finetune.py.
import { app } from "/scripts/app.js";

const DEFAULTS = {
  lora: { steps: 300, learning_rate: 4e-4 },
  attention: { steps: 300, learning_rate: 1.2e-4 },
  full: { steps: 300, learning_rate: 2e-5 },
};

app.registerExtension({
  name: "Imagic.MethodDefaults",
  nodeCreated(node) {
    if (node.comfyClass !== "ImagicFinetuneModel") return;
    const widget = (name) => node.widgets.find((one) => one.name === name);
    const chosen = widget("method").callback;
    widget("method").callback = function (method, ...rest) {
      for (const [name, value] of Object.entries(DEFAULTS[method] ?? {})) {
        const untouched = Object.values(DEFAULTS).some((one) => one[name] === widget(name).value);
        if (untouched) widget(name).value = value;
      }
      return chosen?.call(this, method, ...rest);
    };
  },
});
