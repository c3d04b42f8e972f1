/** The prompt box. */

export class Composer {
  /**
   * @param {HTMLFormElement} form
   * @param {(prompt: string, at: number) => void} onPrompt - With the time of the key, in ms.
   */
  constructor(form, samples, onPrompt) {
    this._box = form.querySelector("#prompt");
    this._button = form.querySelector("#send");
    this._label = form.querySelector("#send-label");
    this._samples = samples;
    this._onPrompt = onPrompt;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this._submit(event.timeStamp);
    });
    this._box.addEventListener("keydown", (event) => {
      // During composition Enter chooses a character.
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      if (!event.repeat) this._submit(event.timeStamp);
    });
    this._box.addEventListener("input", () => this._update());
    this._canSend = false;
  }

  get prompt() {
    return this._box.value.trim().replaceAll(/\s+/g, " ");
  }

  focus() {
    this._box.focus();
    this._box.select();
  }

  get hasFocus() {
    return document.activeElement === this._box;
  }

  leave() {
    this._box.blur();
  }

  /** What Enter does now, and whether it can. */
  allow(canSend, label) {
    this._canSend = canSend;
    this._label.textContent = label;
    this._update();
  }

  /** Offer the prompts that the loaded model knows. */
  offer({ samples }, { prompt_characters: characters }) {
    this._box.maxLength = characters;
    this._samples.replaceChildren(
      ...samples.map((text) => {
        const entry = document.createElement("li");
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = text;
        button.addEventListener("click", (event) => {
          this._box.value = text;
          this._update();
          this._submit(event.timeStamp);
        });
        entry.append(button);
        return entry;
      }),
    );
    if (!this.prompt && samples.length) this._box.value = samples[0];
    this._update();
  }

  /** As if Enter had been pressed now. */
  send(at) {
    this._submit(at);
  }

  _submit(at) {
    if (this._canSend && this.prompt) this._onPrompt(this.prompt, at);
    else this._box.focus();
  }

  _update() {
    this._button.disabled = !(this._canSend && this.prompt);
  }
}
