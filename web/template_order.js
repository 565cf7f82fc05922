// The template browser lists a pack's workflows as the disk gives them out, in any order. Ours are
// numbered: the first edit first, the baselines last.
import { app } from "/scripts/app.js";

const [, folder] = new URL(import.meta.url).pathname.match(/extensions\/([^/]+)\//);

app.registerExtension({
  name: "Imagic.TemplateOrder",
  init() {
    const listed = app.api.getWorkflowTemplates;
    app.api.getWorkflowTemplates = async function (...given) {
      const templates = await listed.apply(this, given);
      templates[decodeURIComponent(folder)]?.sort();
      return templates;
    };
  },
});
