// What Vercel's AI SDK makes of a server, by its openai and openai-compatible providers. Prints one JSON object.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";

const [url, asked] = process.argv.slice(2);
const name = "smollm2-135m";
const openai = createOpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const compatible = createOpenAICompatible({
  name: "baton",
  baseURL: `${url}/v1`,
  supportsStructuredOutputs: true,
});
const models = { responses: openai(name), chat: openai.chat(name), compatible: compatible(name) };
const common = { temperature: 0, maxOutputTokens: 96, maxRetries: 0, prompt: "Say hello." };
const weather = tool({
  description: "The weather in a city.",
  inputSchema: z.object({ city: z.string().max(20) }),
  execute: async ({ city }) => `It is sunny in ${city}.`,
});

async function each(work) {
  const told = {};
  for (const [key, model] of Object.entries(models)) told[key] = await work(model);
  return told;
}

const text = () =>
  each(async (model) => {
    const whole = await generateText({ model, ...common });
    let streamed = "";
    for await (const piece of streamText({ model, ...common }).textStream) streamed += piece;
    return [whole.text, streamed, whole.usage.outputTokens > 0];
  });

const tools = () =>
  each(async (model) => {
    const body = { model, ...common, tools: { weather }, toolChoice: "required", stopWhen: stepCountIs(1) };
    const whole = await generateText(body);
    const streamed = await streamText(body).toolCalls;
    return [whole.toolCalls, streamed].map((calls) => [calls[0].toolName, calls[0].input]);
  });

const schema = () =>
  each(async (model) => {
    const shape = z.object({ name: z.string().max(20), big: z.boolean() });
    const { output } = await generateText({ model, ...common, output: Output.object({ schema: shape }) });
    return output;
  });

console.log(JSON.stringify(await { text, tools, schema }[asked]()));
