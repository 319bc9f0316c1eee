// One column: an answer's tokens, its figures and its histogram.

import { Answer, describe, percent } from "./answer.js";

export class Column {
  answer = new Answer();
  #section;
  #explain;
  #spans = [];
  #fork = null;

  /** `explain(token, span)` is called when a judged token is chosen. */
  constructor(section, explain) {
    section.append(document.getElementById("column").content.cloneNode(true));
    this.#section = section;
    this.#explain = explain;
  }

  clear() {
    this.answer = new Answer();
    this.#spans = [];
    this.#fork = null;
    this.#part(".answer").replaceChildren();
    this.#draw();
  }

  add(chunk) {
    const from = this.answer.add(chunk, performance.now());
    const added = this.answer.tokens.slice(from).map((token) => this.#span(token));
    this.#spans.push(...added);
    this.#part(".answer").append(...added);
    this.#draw();
  }

  /** Marks the token at this character as the place where the texts part. */
  mark(offset) {
    const index = this.answer.tokenAt(offset);
    if (this.#fork || index < 0) return;
    this.#fork = document.createElement("span");
    this.#fork.className = "fork";
    this.#fork.setAttribute("role", "img");
    this.#fork.setAttribute("aria-label", "The two texts part here");
    this.#fork.title = "The two texts part here";
    this.#fork.textContent = "▼";
    this.#spans[index].before(this.#fork);
  }

  #span(token) {
    const span = document.createElement("span");
    span.className = `token ${token.provenance}`;
    span.textContent = token.text;
    span.title = describe(token);
    if (token.provenance === "judged") {
      span.tabIndex = 0;
      span.setAttribute("role", "button");
      span.setAttribute("aria-label", `${token.text}, judged; show why`);
      span.addEventListener("click", () => this.#explain(token, span));
      span.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        this.#explain(token, span);
      });
    }
    return span;
  }

  #draw() {
    const { tokens, speed, length, judged, rounds } = this.answer;
    this.#figure("speed", speed?.toFixed(1));
    this.#figure("length", length?.toFixed(2));
    this.#figure("judged", tokens.length ? percent(judged / tokens.length) : null);
    this.#figure("tokens", tokens.length || null);
    this.#histogram(rounds);
  }

  #figure(name, value) {
    this.#part(`[data-figure="${name}"]`).textContent = value ?? "–";
  }

  #histogram(rounds) {
    const counts = new Array(rounds.length ? Math.max(...rounds) + 1 : 0).fill(0);
    for (const accepted of rounds) counts[accepted] += 1;
    const most = Math.max(1, ...counts);
    const chart = this.#part(".histogram");
    chart.replaceChildren(...counts.map((count, accepted) => {
      const [bar, fill] = [document.createElement("div"), document.createElement("div")];
      bar.className = "bar";
      fill.style.height = `${(70 * count) / most}%`;
      bar.append(String(count), fill, String(accepted));
      return bar;
    }));
    const words = counts.map((count, accepted) => `${count} with ${accepted} accepted`);
    chart.setAttribute("aria-label", words.length ? `Rounds: ${words.join(", ")}` : "No rounds yet");
  }

  #part(selector) {
    return this.#section.querySelector(selector);
  }
}
