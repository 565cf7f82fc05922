// Newer front ends say only that a node failed, and keep what it said behind "View details". Our
// nodes say which input to change, and how: this shows it at once, unless the page does already.
import { app } from "/scripts/app.js";

// The names of our nodes, with which their sentences begin.
const OURS = /\b(Imagic [\w -]+): ([^]+)/;
let shown = [];

const tell = (text) => {
  const [sentence, summary, detail] = text?.trim().match(OURS) ?? [];
  if (!sentence) return;
  setTimeout(() => {
    if (document.body.innerText.includes(sentence)) return;
    const message = { severity: "error", summary, detail };
    app.extensionManager.toast.add(message);
    shown.push(message);
  }, 500);
};

app.registerExtension({
  name: "Imagic.ErrorSentences",
  setup() {
    app.api.addEventListener("execution_error", ({ detail }) => tell(detail.exception_message));
    app.api.addEventListener("promptQueued", () => {
      for (const message of shown) app.extensionManager.toast.remove(message);
      shown = [];
      for (const { errors } of Object.values(app.lastNodeErrors ?? {}))
        for (const { details } of errors) tell(details);
    });
  },
});
