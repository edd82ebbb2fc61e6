// The API's own JavaScript client against a gateway: `node client.mjs PREFIX BASE_URL KEY CASE` prints one JSON object.
import { createRequire } from "node:module";

const [prefix, baseURL, apiKey, name] = process.argv.slice(2);
const { OpenAI } = createRequire(`${prefix}/`)("openai");
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0, timeout: 20_000 });
const chat = { model: "gpt-test", messages: [{ role: "user", content: "你好" }] };

async function streamed(more = {}) {
  let text = "";
  for await (const chunk of await client.chat.completions.create({ ...chat, stream: true, ...more })) {
    text += chunk.choices[0]?.delta?.content ?? "";
  }
  return text;
}

async function failing(ask) {
  try {
    await ask();
  } catch (error) {
    return { name: error.constructor.name, status: error.status ?? null, code: error.code ?? null, message: error.message };
  }
  return { name: "none" };
}

const cases = {
  async all() {
    const whole = await client.chat.completions.create(chat);
    const text = await client.completions.create({ model: "gpt-test", prompt: "x" });
    const vectors = await client.embeddings.create({ model: "embed-test", input: ["a", "b"], encoding_format: "float" });
    const models = [];
    for await (const model of client.models.list()) models.push(model.id);
    return {
      whole: whole.choices[0].message.content,
      request: whole._request_id,
      streamed: await streamed(),
      text: text.choices[0].text,
      vectors: vectors.data.map((one) => one.embedding),
      models,
      retrieved: (await client.models.retrieve("gpt-test")).id,
    };
  },
  async errors() {
    return {
      bad: await failing(() => client.chat.completions.create({ ...chat, messages: [] })),
      missing: await failing(() => client.models.retrieve("none")),
      key: await failing(() => client.withOptions({ apiKey: "wrong" }).models.list()),
    };
  },
  async text() {
    return { streamed: await streamed() };
  },
  async fails() {
    return failing(() => streamed());
  },
  async leaves() {
    const stream = await client.chat.completions.create({ ...chat, stream: true });
    for await (const chunk of stream) {
      if (chunk.choices[0]?.delta?.content) break; // leaving the loop aborts the request
    }
    return {};
  },
};

console.log(JSON.stringify(await cases[name]()));
