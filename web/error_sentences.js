// Newer front ends say only that a node failed, and keep what it said behind "View details". Our
// nodes say which input to change, and how: this shows it at once, unless the page does already.
import { app } from "/scripts/app.js";

// The names of our nodes, with which their sentences begin.
const OURS = /\b(Imagic [\w -]+): ([^]+)/;

const tell = (text) => {
  const [sentence, summary, detail] = text?.trim().match(OURS) ?? [];
  if (!sentence) return;
  setTimeout(() => {
    if (document.body.innerText.includes(sentence)) return;
    // It lies over "View details", and so gives it back after a while.
    app.extensionManager.toast.add({ severity: "error", summary, detail, life: 20_000 });
  }, 500);
};

app.registerExtension({
  name: "Imagic.ErrorSentences",
  setup() {
    app.api.addEventListener("execution_error", ({ detail }) => tell(detail.exception_message));
    app.api.addEventListener("promptQueued", () => {
      for (const { errors } of Object.values(app.lastNodeErrors ?? {}))
        for (const { details } of errors) tell(details);
    });
  },
});
