// What one column knows about its answer. No DOM here.

/** Tokens in order, each with its provenance, the judge's score and the target's log-probabilities. */
export class Answer {
  tokens = [];
  #logprobs = 0;
  #first = null;
  #last = null;

  /** Adds a chunk; returns the index of the first token that is new. `now` is in milliseconds. */
  add(chunk, now) {
    const from = this.tokens.length;
    for (const choice of chunk.choices ?? []) {
      const { texts = [], provenance = [], scores = [] } = choice.judge ?? {};
      texts.forEach((text, i) => {
        this.tokens.push({ text, provenance: provenance[i], score: scores[i] ?? null, logprobs: null });
      });
      for (const entry of choice.logprobs?.content ?? []) {
        if (this.#logprobs < this.tokens.length) this.tokens[this.#logprobs++].logprobs = entry;
      }
    }
    if (this.tokens.length > from) {
      this.#first ??= { now, count: this.tokens.length };
      this.#last = now;
    }
    return from;
  }

  get text() {
    return this.tokens.map((token) => token.text).join("");
  }

  /** Tokens per second after the first chunk, whose time is the prompt's; null before a second one. */
  get speed() {
    const seconds = this.#first ? (this.#last - this.#first.now) / 1000 : 0;
    return seconds > 0 ? (this.tokens.length - this.#first.count) / seconds : null;
  }

  get judged() {
    return this.tokens.filter((token) => token.provenance === "judged").length;
  }

  /** Draft tokens accepted in each round. A round ends with a token of the target's own. */
  get rounds() {
    const rounds = [];
    let accepted = 0;
    for (const { provenance } of this.tokens) {
      if (provenance === "target") {
        rounds.push(accepted);
        accepted = 0;
      } else accepted += 1;
    }
    return accepted ? [...rounds, accepted] : rounds; // the last round may end within its draft
  }

  /** 1 + accepted / rounds, or null without a round. */
  get length() {
    const { rounds } = this;
    return rounds.length ? 1 + rounds.reduce((sum, n) => sum + n, 0) / rounds.length : null;
  }

  /** The token that holds the character at `offset`; -1 if there is none. */
  tokenAt(offset) {
    let end = 0;
    return this.tokens.findIndex((token) => (end += token.text.length) > offset);
  }
}

/** The first character at which two texts differ, or null while one is a prefix of the other. */
export function parting(a, b) {
  const shorter = Math.min(a.length, b.length);
  for (let i = 0; i < shorter; i++) if (a[i] !== b[i]) return i;
  return null;
}

/** The target's choices at a token, likeliest first: [{text, probability}]. */
export function choices(token) {
  return (token.logprobs?.top_logprobs ?? [])
    .map((entry) => ({ text: entry.token, probability: Math.exp(entry.logprob) }))
    .sort((a, b) => b.probability - a.probability);
}

/** A sentence on one token, for its tooltip and for "why". */
export function describe(token) {
  const origin = {
    aligned: "drafted, and what the target would have written",
    judged: "drafted, and accepted by the rule alone",
    target: "written by the target",
  }[token.provenance] ?? "of unknown origin";
  const parts = [`${quote(token.text)}: ${origin}`];
  if (token.score !== null) parts.push(`the judge's score is ${token.score.toFixed(3)}`);
  if (token.logprobs) parts.push(`the target's probability is ${percent(Math.exp(token.logprobs.logprob))}`);
  const [best] = choices(token);
  if (token.provenance === "judged" && best) parts.push(`the target would have written ${quote(best.text)}`);
  return `${parts.join("; ")}.`;
}

export function percent(share) {
  return `${(100 * share).toFixed(share > 0 && share < 0.01 ? 3 : 1)} %`;
}

export function quote(text) {
  return JSON.stringify(text);
}
