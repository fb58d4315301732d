// One answer as it grows: reasoning folded away, the text, tool calls as text, and a note at its end.
import { duration, number } from "./words.js";

const FLUSH_MS = 40;

// Text that is added often and drawn rarely.
class GrowingText {
  #node = document.createTextNode(""); #waiting = []; #timer = null; #onGrow;

  constructor(parent, onGrow) {
    parent.append(this.#node);
    this.#onGrow = onGrow;
  }

  add(text) {
    this.#waiting.push(text);
    this.#timer ??= setTimeout(() => this.flush(), FLUSH_MS);
  }

  flush() {
    clearTimeout(this.#timer);
    this.#timer = null;
    if (!this.#waiting.length) return;
    this.#node.appendData(this.#waiting.join(""));
    this.#waiting = [];
    this.#onGrow();
  }
}

export class Answer {
  content = "";
  #onGrow; #details; #summary; #note; #texts = {}; #calls = []; #usage = null; #finish = null;
  #begun = performance.now(); #first = null; #last = null;

  constructor(onGrow = () => {}) {
    this.#onGrow = onGrow;
    this.element = make("article", "answer");
    this.element.setAttribute("aria-label", "Answer");
    this.#details = make("details", "reasoning");
    this.#details.hidden = true;
    this.#summary = make("summary", "", "Thinking…");
    const reasoning = make("div", "text"), final = make("div", "text final");
    this.#details.append(this.#summary, reasoning);
    this.#note = make("p", "note", "Waiting for the first token…");
    this.element.append(this.#details, final, this.#note);
    this.#texts = { reasoning: new GrowingText(reasoning, onGrow), final: new GrowingText(final, onGrow) };
  }

  // A chunk of the stream.
  take(chunk) {
    this.#usage = chunk.usage ?? this.#usage;
    const [choice] = chunk.choices ?? [];
    if (!choice) return;
    const { delta } = choice;
    const reasoning = delta.reasoning ?? delta.reasoning_content;
    this.#finish = choice.finish_reason ?? this.#finish;
    if (reasoning || delta.content || delta.tool_calls) this.#tick();
    if (reasoning) {
      this.#details.hidden = false;
      this.#texts.reasoning.add(reasoning);
    }
    if (delta.content) {
      this.#thought();
      this.content += delta.content;
      this.#texts.final.add(delta.content);
    }
    for (const call of delta.tool_calls ?? []) this.#takeCall(call);
  }

  // Nothing more comes; `trouble` says why, where it is not the answer's own end.
  end(trouble = null, isBad = false) {
    for (const text of [...Object.values(this.#texts), ...this.#calls]) text.flush();
    this.#thought();
    this.#note.textContent = [trouble, this.#finish === "length" && "Cut off: the limit on tokens was reached.", this.#measured()]
      .filter(Boolean).join(" ");
    this.#note.classList.toggle("is-bad", isBad);
    this.#onGrow();
  }

  #takeCall({ index, function: { name, arguments: written } }) {
    this.#thought();
    if (!this.#calls[index]) {
      const call = make("pre", "text call");
      this.#note.before(call);
      this.#calls[index] = new GrowingText(call, this.#onGrow);
    }
    if (name) this.#calls[index].add(`calls ${name} `);
    if (written) this.#calls[index].add(written);
  }

  #tick() {
    this.#last = performance.now();
    if (this.#first !== null) return;
    this.#first = this.#last;
    this.#note.textContent = "";
  }

  #thought() {
    if (this.#summary.textContent !== "Reasoning") this.#summary.textContent = "Reasoning";
  }

  #measured() {
    if (!this.#usage || this.#first === null) return null;
    const tokens = this.#usage.completion_tokens, seconds = (this.#last - this.#first) / 1000;
    const reasoning = this.#usage.completion_tokens_details?.reasoning_tokens;
    const speed = tokens > 1 && seconds > 0 ? `, ${number((tokens - 1) / seconds)} tokens/s` : "";
    const first = duration((this.#first - this.#begun) / 1000);
    return `${tokens} tokens${reasoning ? ` (${reasoning} of reasoning)` : ""}, first after ${first}${speed}.`;
  }
}

export function make(name, classes = "", text = "") {
  const node = document.createElement(name);
  node.className = classes;
  node.textContent = text;
  return node;
}
