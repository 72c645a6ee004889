// llama.cpp through node-llama-cpp: tokens of the prompts, greedy text, its log-probabilities.
import fs from "node:fs";
import path from "node:path";
import {pathToFileURL} from "node:url";

const [folder, taskFile, answerFile] = process.argv.slice(2);
const task = JSON.parse(fs.readFileSync(taskFile, "utf8"));
const installed = path.join(folder, "node_modules", "node-llama-cpp");
const {getLlama} = await import(pathToFileURL(path.join(installed, "dist", "index.js")).href);
const version = JSON.parse(fs.readFileSync(path.join(installed, "package.json"), "utf8")).version;

const llama = await getLlama({gpu: false, build: "never", logLevel: "error"});
const model = await llama.loadModel({modelPath: task.model});
const longest = Math.max(...task.prompt_ids.map((ids) => ids.length)) + task.new_tokens + 8;
const lora = task.adapter ? {adapters: [{filePath: task.adapter, scale: 1}]} : undefined;
const context = await model.createContext({contextSize: Math.max(64, longest), lora, threads: 1, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32"});

function tokens(text) {
    const found = model.tokenize(text, true);
    const first = model.tokens.bos;
    return model.tokens.shouldPrependBosToken && found[0] !== first ? [first, ...found] : found;
}

const wanted = {generateNext: {token: true, probabilities: true, options: {temperature: 0}}};
const promptIds = [], ids = [], logprobs = [];
const sequence = context.getSequence();
for (const prompt of task.prompts) {
    await sequence.clearHistory();
    const given = tokens(prompt);
    promptIds.push(given);
    const out = [], told = [];
    let next = given;
    for (let i = 0; i < task.new_tokens; i++) {
        const input = next.map((token, at) => (at === next.length - 1 ? [token, wanted] : token));
        const result = (await sequence.controlledEvaluate(input)).at(-1).next;
        out.push(result.token);
        told.push(Math.log(result.probabilities.get(result.token)));
        next = [result.token];
    }
    ids.push(out);
    logprobs.push(told);
}
const release = llama.llamaCppRelease.release;
fs.writeFileSync(answerFile, JSON.stringify(
    {version: `${release} (node-llama-cpp ${version})`, prompt_ids: promptIds, ids, logprobs}));
process.exit(0);
