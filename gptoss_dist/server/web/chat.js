// The conversation: prompts, answers, stopping, beginning anew. The API key lives in its field and nowhere else.
import { Answer, make } from "./answer.js";
import { Failure, chatEvents } from "./stream.js";

const NEAR_PX = 60; // so close to its end the log follows what is added
const byId = (id) => document.getElementById(id);

export class Chat {
  #history = []; #abort = null; #atEnd = true; #log = byId("log"); #prompt = byId("prompt"); #empty = byId("empty");

  constructor() {
    byId("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      byId("form").requestSubmit(); // the browser checks the other fields
    });
    this.#log.addEventListener("scroll", () => {
      const { scrollHeight, scrollTop, clientHeight } = this.#log;
      this.#atEnd = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    });
    byId("stop").addEventListener("click", () => this.stop());
    byId("new").addEventListener("click", () => this.begin());
  }

  stop() {
    this.#abort?.abort();
    this.#prompt.focus();
  }

  begin() {
    this.stop();
    this.#history = [];
    this.#log.replaceChildren(this.#empty);
    this.#fail(null);
  }

  async send() {
    const text = this.#prompt.value;
    if (!text.trim() || this.#abort) return;
    const history = this.#history, mine = make("div", "mine text", text);
    const answer = new Answer(() => this.#follow());
    this.#empty.remove();
    this.#fail(null);
    this.#log.append(mine, answer.element);
    this.#atEnd = true;
    this.#follow();
    this.#prompt.value = "";
    if (document.activeElement === byId("key")) this.#prompt.focus();
    const asked = [...history, { role: "user", content: text }];
    this.#busy(new AbortController());
    const { signal } = this.#abort;
    try {
      for await (const event of chatEvents(this.#body(asked), byId("key").value.trim(), signal)) answer.take(event);
      answer.end();
      history.push(asked.at(-1), { role: "assistant", content: answer.content });
    } catch (error) {
      this.#ended(error, signal, { text, history, mine, answer });
    } finally {
      this.#busy(null);
    }
  }

  // Not by its own end: stopped, refused, or broken off. What has been said stays; what was refused can be sent again.
  #ended(error, signal, { text, history, mine, answer }) {
    if (!signal.aborted && !(error instanceof Failure)) console.error(error);
    const why = signal.aborted ? "Stopped." : error instanceof Failure ? error.message : `The page failed: ${error.message}`;
    answer.end(why, !signal.aborted);
    if (answer.content) {
      history.push({ role: "user", content: text }, { role: "assistant", content: answer.content });
    } else if (!signal.aborted) {
      mine.remove();
      answer.element.remove();
      if (!this.#log.children.length) this.#log.append(this.#empty);
      this.#prompt.value ||= text;
      this.#fail(why);
    }
    if (error.status === 401) {
      byId("key-row").hidden = false;
      byId("key").focus();
    }
  }

  #body(messages) {
    const effort = byId("effort").value, most = Number.parseInt(byId("max-tokens").value, 10);
    return { messages, ...(effort && { reasoning_effort: effort }), ...(most > 0 && { max_tokens: most }) };
  }

  #busy(abort) {
    this.#abort = abort;
    this.#log.setAttribute("aria-busy", String(Boolean(abort)));
    const stop = byId("stop"), send = byId("send");
    const isFocused = [stop, send].includes(document.activeElement);
    stop.hidden = !abort;
    send.hidden = Boolean(abort);
    if (isFocused) (abort ? stop : this.#prompt).focus(); // it would be lost with the hidden button
  }

  #fail(why) {
    byId("failure").textContent = why ?? "";
    byId("failure").hidden = !why;
  }

  #follow() {
    if (this.#atEnd) this.#log.scrollTop = this.#log.scrollHeight;
  }
}
