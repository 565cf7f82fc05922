// A search for "imagic" lists names by their length, and so the tools before the three nodes that
// everyone needs. This puts those three first, in the order of their stages; it moves no node of
// anyone else's.
import { app } from "/scripts/app.js";

const STAGES = ["ImagicOptimizeEmbedding", "ImagicFinetuneModel", "ImagicInterpolateConditioning"];

app.registerExtension({
  name: "Imagic.SearchOrder",
  beforeRegisterVueAppNodeDefs(defs) {
    for (const def of defs) {
      const stage = STAGES.indexOf(def.name);
      if (stage < 0) continue;
      // The scores: kind of match, place of the match, length of the name, distance. The host's
      // own method puts the frequency behind the first, which no node of a pack has. The distance
      // counts the length of the name once more: less than 0.04 from one of the three to the next,
      // the most in a search for several words.
      def.postProcessSearchScores = ([kind, place, length, distance]) =>
        [kind, 0, place, Math.min(stage, length), distance + 0.04 * stage];
    }
  },
});
