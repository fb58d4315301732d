// One request to /v1/chat/completions: its events as they come, and its failures in words.

export class Failure extends Error {
  constructor(message, status = null) {
    super(message);
    this.status = status;
  }
}

// The JSON of every event. Throws Failure for what the server refuses and for a stream that breaks off.
export async function* chatEvents(body, key, signal) {
  if (!/^[\x21-\x7e]*$/.test(key)) throw new Failure("An API key has letters, digits and signs of ASCII alone.", 401);
  const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
  const content = JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
  let answer;
  try {
    answer = await fetch("v1/chat/completions", { method: "POST", headers, body: content, signal, credentials: "omit" });
  } catch (error) {
    throw signal.aborted ? error : new Failure("The server cannot be reached.");
  }
  if (!answer.ok) throw await refusal(answer, key);
  for await (const data of dataOf(answer.body, signal)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw new Failure(event.error.message);
    yield event;
  }
  throw new Failure("The connection was lost before the answer was complete.");
}

async function* dataOf(body, signal) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
      }
    }
  } catch (error) {
    throw signal.aborted ? error : new Failure("The connection was lost before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already, which was told above
  }
}

async function refusal(answer, key) {
  const text = await answer.text();
  const said = messageOf(text) ?? answer.statusText;
  const retry = answer.headers.get("Retry-After");
  const later = retry ? ` Try again in ${retry} s.` : "";
  const words = {
    401: key ? "The server does not know this API key." : "This server wants an API key. Type it below and send again.",
    429: `The server has too much to do: ${said}${later}`,
    503: `The server is not ready: ${said}${later}`,
  };
  return new Failure(words[answer.status] ?? `The server refused this (${answer.status}): ${said}`, answer.status);
}

function messageOf(text) {
  try {
    return JSON.parse(text).error.message;
  } catch {
    return null; // not this server's words: something in between answered
  }
}
