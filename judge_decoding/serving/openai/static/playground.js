// The page: reads the form, streams both columns together, shows errors and "why".

import { choices, describe, parting, percent, quote } from "./answer.js";
import { Column } from "./column.js";
import { model, ServerError, stream } from "./completions.js";

const STANDARD = "strict";
const TOP = 5;

const $ = (id) => document.getElementById(id);
const left = new Column($("left"), explain);
const right = new Column($("right"), explain);
let served = null; // the model's id
let running = null; // the AbortController of the run in progress
let chosen = null; // the token whose "why" is open

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!running) run();
});
$("stop").addEventListener("click", () => running?.abort());
for (const id of ["threshold", "draft-len", "rule"]) $(id).addEventListener("input", showValues);
$("why-close").addEventListener("click", closeWhy);
$("why").addEventListener("keydown", (event) => event.key === "Escape" && closeWhy());
$("api-key").addEventListener("change", () => served ?? introduce());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
introduce();

/** Asks the server for its model and sets the form's limits. */
async function introduce() {
  try {
    const { id, judge_decoding: facts = {} } = await model($("api-key").value);
    served = id;
    $("model").textContent = `Model: ${id}`;
    const rules = (facts.rules ?? ["judge"]).filter((rule) => rule !== STANDARD);
    $("rule").replaceChildren(...rules.map((rule) => new Option(rule)));
    $("rule").value = rules.includes(facts.rule) ? facts.rule : rules[0];
    $("threshold").value = facts.threshold ?? 0.5;
    $("draft-len").max = facts.max_draft_len ?? 3;
    $("draft-len").value = facts.max_draft_len ?? 3;
    $("max-tokens").max = facts.max_tokens ?? 1024;
    $("max-tokens").value = Math.min(96, $("max-tokens").max);
    showValues();
    showError(null);
  } catch (error) {
    $("model").textContent = "";
    showError(error);
  }
}

/** Streams both columns; ends when both have ended, when one fails, or on Stop. */
async function run() {
  showValues();
  showError(null);
  closeWhy();
  left.clear();
  right.clear();
  running = new AbortController();
  setBusy(true);
  $("status").textContent = "Both columns are streaming.";
  try {
    if (!served) await introduce();
    if (served) await Promise.all([follow(left, STANDARD), follow(right, $("rule").value)]);
    $("status").textContent = served ? "Both answers are complete." : "";
  } catch (error) {
    $("status").textContent = running.signal.aborted ? "Stopped." : "";
    if (!running.signal.aborted) showError(error);
    running.abort(); // the other column's request must not go on
  } finally {
    running = null;
    setBusy(false);
  }
}

async function follow(column, rule) {
  const body = {
    model: served,
    messages: [{ role: "user", content: $("prompt").value }],
    max_tokens: Number($("max-tokens").value),
    max_draft_len: Number($("draft-len").value),
    temperature: 0,
    acceptance_rule: rule,
    stream: true,
    stream_options: { include_usage: true },
    return_provenance: true,
    logprobs: true,
    top_logprobs: TOP,
  };
  if (rule === "judge") body.judge_threshold = Number($("threshold").value);
  for await (const chunk of stream(body, $("api-key").value, running.signal)) {
    column.add(chunk);
    const offset = parting(left.answer.text, right.answer.text);
    if (offset !== null) for (const one of [left, right]) one.mark(offset);
  }
}

/** Opens "why" for a judged token: the target's likeliest tokens at its place. */
function explain(token, span) {
  chosen = span;
  $("why-text").textContent = describe(token);
  const rows = choices(token).slice(0, TOP).map((choice) => {
    const row = document.createElement("tr");
    for (const text of [quote(choice.text), percent(choice.probability)]) row.insertCell().textContent = text;
    return row;
  });
  $("why").querySelector("table").hidden = !rows.length;
  if (!rows.length) $("why-text").textContent += " This server returns no log-probabilities.";
  $("why-rows").replaceChildren(...rows);
  $("why").hidden = false;
  $("why").focus();
}

function closeWhy() {
  if ($("why").hidden) return;
  $("why").hidden = true;
  chosen?.focus(); // where the reader was
  chosen = null;
}

function showValues() {
  $("threshold-value").textContent = Number($("threshold").value).toFixed(2);
  $("draft-len-value").textContent = $("draft-len").value;
  $("threshold").disabled = $("rule").value !== "judge";
  $("right-rule").textContent = $("rule").value;
}

function showError(error) {
  if (error && !(error instanceof ServerError)) console.error(error);
  if (error?.status === 401) $("api-key-label").hidden = false;
  $("error").textContent = error ? error.message : "";
  $("error").hidden = !error;
}

function setBusy(busy) {
  $("run").disabled = busy;
  $("stop").disabled = !busy;
}
