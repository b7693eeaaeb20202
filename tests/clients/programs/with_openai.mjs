// What OpenAI's npm client makes of a server, chats and responses. Prints one JSON object.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, asked] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const model = "smollm2-135m";
const messages = [{ role: "user", content: "Say hello." }];
const sampled = { model, temperature: 0 };
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 20 } },
  required: ["city"],
  additionalProperties: false,
};
const tool = { type: "function", function: { name: "weather", parameters, strict: true } };
const flat = { type: "function", name: "weather", parameters, strict: true };

async function text() {
  const whole = await client.chat.completions.create({ ...sampled, messages, max_tokens: 64 });
  let streamed = "";
  for await (const chunk of await client.chat.completions.create({ ...sampled, messages, max_tokens: 64, stream: true }))
    streamed += chunk.choices[0]?.delta?.content ?? "";
  const response = await client.responses.create({ ...sampled, input: "Say hello.", max_output_tokens: 64 });
  const stream = client.responses.stream({ ...sampled, input: "Say hello.", max_output_tokens: 64 });
  const final = await stream.finalResponse();
  return { whole: whole.choices[0].message.content, streamed, responses: [response.output_text, final.output_text] };
}

async function tools() {
  const body = { ...sampled, messages, tools: [tool], tool_choice: "required", parallel_tool_calls: false };
  const whole = await client.chat.completions.create(body);
  const streamed = await client.chat.completions.stream(body).finalChatCompletion();
  const response = await client.responses.create({ ...sampled, input: "Say hello.", tools: [flat], tool_choice: { type: "function", name: "weather" } });
  const calls = [whole, streamed].map(({ choices: [choice] }) => [
    choice.finish_reason,
    choice.message.tool_calls[0].function.name,
    JSON.parse(choice.message.tool_calls[0].function.arguments),
  ]);
  const items = response.output.map((item) => [item.type, item.name, JSON.parse(item.arguments)]);
  return { calls, items };
}

async function schema() {
  const City = z.object({ name: z.string().max(20), big: z.boolean() });
  const chat = await client.chat.completions.parse({ ...sampled, messages, response_format: zodResponseFormat(City, "city") });
  const response = await client.responses.parse({ ...sampled, input: "A city.", text: { format: zodTextFormat(City, "city") } });
  return { chat: chat.choices[0].message.parsed, responses: response.output_parsed };
}

console.log(JSON.stringify(await { text, tools, schema }[asked]()));
