/** The choices below the prompt box: the transition, and what the next start is made with. */

const SEEDS = 1_000_000;

export class Settings {
  constructor(root) {
    this._root = root;
    this._at = (id) => root.querySelector(`#${id}`);
    this._recipes = [];
    root.addEventListener("change", ({ target }) => {
      if (target.name === "transition") this._showBlend();
      if (target.id === "recipe") this._fillSteps();
    });
    this._at("dice").addEventListener("click", () => {
      this._at("seed").value = Math.floor(Math.random() * SEEDS);
    });
    this._showBlend();
  }

  /** Offer what the loaded model has. */
  offer(recipes, { seed }) {
    this._recipes = recipes;
    this._at("seed").max = seed;
    fill(this._at("recipe"), recipes.map(({ name, label }) => [name, label || name]));
    this._fillSteps();
  }

  get transition() {
    const kind = this._root.querySelector("input[name=transition]:checked").value;
    if (kind !== "blend") return { kind };
    return { kind, blocks: bounded(this._at("blend")) };
  }

  /** The fields of a `start`. */
  get making() {
    return {
      seed: bounded(this._at("seed")),
      recipe: this._at("recipe").value,
      steps: Number(this._at("steps").value),
      transition: this.transition,
    };
  }

  _showBlend() {
    const kind = this._root.querySelector("input[name=transition]:checked").value;
    this._at("blend-field").hidden = kind !== "blend";
  }

  _fillSteps() {
    const recipe = this._recipes.find(({ name }) => name === this._at("recipe").value);
    fill(this._at("steps"), (recipe?.steps ?? []).map((count) => [count, count]));
  }
}

/** The number in a field, brought into its range; the field then shows it. */
function bounded(field) {
  const low = Number(field.min);
  const high = field.max === "" ? Infinity : Number(field.max);
  const number = Math.round(Number(field.value)) || low;
  field.value = Math.min(Math.max(number, low), high);
  return Number(field.value);
}

function fill(select, entries) {
  const chosen = select.value;
  select.replaceChildren(...entries.map(([value, text]) => new Option(text, value)));
  if (entries.some(([value]) => String(value) === chosen)) select.value = chosen;
}
