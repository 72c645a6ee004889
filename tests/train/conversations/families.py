# ruff: noqa: RUF001
# (DeepSeek's tokens have wide bars.)
"""Chat templates of the known families, written from their published formats, and what each has to learn of one talk.

`answers` are written by hand from the format: what the model has to produce after the prompt, up to the token at which
it stops. Templates are shortened to what a conversation of text, thoughts and tool calls needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import tiny


@dataclass(frozen=True)
class Family:
    """A family's template and tokens, and the two answers of the talk as it has to write them.

    Attributes:
        sequences: how many sequences the talk of two answers makes with `data.turns: auto`.
        ends: the tokens at which generation has to stop.
        system, thinks: whether the talk has a system message, and thoughts before its answers.
        why: what is particular, for the page.
    """

    name: str
    template: str
    eos: str
    specials: tuple[str, ...]
    answers: tuple[str, str]
    ends: tuple[str, ...]
    sequences: int = 1
    bos: str | None = None
    system: bool = True
    thinks: bool = False
    why: str = ""

    def talk(self) -> list[dict[str, Any]]:
        """The same five messages for all, as far as the family has them."""
        out: list[dict[str, Any]] = [{"role": "system", "content": "Be brief."}] if self.system else []
        for question, answer, thought in (("Name a river", "Tejo", "In Lisbon?"), ("Another", "Douro", "Porto.")):
            out.append({"role": "user", "content": question})
            out.append({"role": "assistant", "content": answer})
            if self.thinks:
                out[-1]["reasoning_content"] = thought
        return out

    def tokenizer(self) -> Any:
        """A tokenizer of bytes and the family's tokens."""
        out = tiny.tokenizer(chat=False)
        out.add_special_tokens({"additional_special_tokens": list(self.specials)})
        out.eos_token = self.eos
        out.bos_token = self.bos
        out.chat_template = self.template
        return out


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# The system message is part of the first question; answers stand between blanks.
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}"
    "{% else %}{% set content = m['content'] %}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

MISTRAL_V1 = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)


def _mistral_later(before_content: str, after_content: str, before_answer: str) -> str:
    """The system message moves with the last question."""
    return (
        "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
        "{% set users = rest | selectattr('role', 'equalto', 'user') | list %}{{ bos_token }}"
        "{% for m in rest %}{% if m['role'] == 'user' %}"
        "{% if tools is not none and m == users[-1] %}"
        "{{ '[AVAILABLE_TOOLS]" + before_content + "' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{% endif %}"
        "{% if m == users[-1] and system is defined %}"
        "{{ '[INST]" + before_content + "' + system + '\\n\\n' + m['content'] + '" + after_content + "[/INST]' }}"
        "{% else %}{{ '[INST]" + before_content + "' + m['content'] + '" + after_content + "[/INST]' }}{% endif %}"
        "{% elif m['tool_calls'] is defined and m['tool_calls'] %}"
        "{{ '[TOOL_CALLS]" + before_content + "' + (m['tool_calls'] | map(attribute='function') | list | tojson)"
        " + eos_token }}"
        "{% elif m['role'] == 'tool' %}"
        "{{ '[TOOL_RESULTS]" + before_content + "' + ({'content': m['content']} | tojson) + '[/TOOL_RESULTS]' }}"
        "{% else %}{{ '" + before_answer + "' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    )


MISTRAL_V3 = _mistral_later(" ", "", " ")
TEKKEN = _mistral_later("", "", "")

GEMMA_2 = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{% set role = 'model' %}"
    "{% else %}{% set role = m['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

GEMMA_3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set head = messages[0]['content'] + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + (head if loop.first else '') }}{{ m['content'] | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)

# Thoughts stand in a channel; none are written again, and without thinking the prompt has an empty one.
GEMMA_4 = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<|turn>' + role + '\n' }}"
    "{{ m['content'].split('<channel|>')[-1] | trim }}{{ '<turn|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|turn>model\n' }}"
    "{% if not (enable_thinking | default(false)) %}{{ '<|channel>thought\n<channel|>' }}{% endif %}{% endif %}"
)

QWEN_25 = (
    "{% if messages[0]['role'] == 'system' %}{% set head = messages[0]['content'] %}"
    "{% else %}{% set head = 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' %}{% endif %}"
    "{{ '<|im_start|>system\n' + head }}"
    "{% if tools %}{{ '\n\n# Tools\n<tools>' }}{% for t in tools %}{{ '\n' + (t | tojson) }}{% endfor %}"
    "{{ '\n</tools>' }}{% endif %}{{ '<|im_end|>\n' }}"
    "{% for m in messages %}"
    "{% if m.role == 'user' or (m.role == 'system' and not loop.first)"
    " or (m.role == 'assistant' and not m.tool_calls) %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant' }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    '{% for c in m.tool_calls %}{{ \'\n<tool_call>\n{"name": "\' + c.function.name + \'", "arguments": \''
    " + (c.function.arguments | tojson) + '}\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% elif m.role == 'tool' %}{% if loop.first or messages[loop.index0 - 1].role != 'tool' %}"
    "{{ '<|im_start|>user' }}{% endif %}{{ '\n<tool_response>\n' + m.content + '\n</tool_response>' }}"
    "{% if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\n' }}{% endif %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Thoughts of answers before the last question are left out; the last answer always has a place for one.
QWEN_3 = (
    "{% set ns = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role != 'assistant' %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% else %}"
    "{% set thought = m.reasoning_content if m.reasoning_content is string else '' %}{% set content = m.content %}"
    "{% if not thought and '</think>' in content %}"
    "{% set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set content = content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{% if loop.index0 > ns.last and (loop.last or thought) %}"
    "{{ '<|im_start|>assistant\n<think>\n' + thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}"
    "{% else %}{{ '<|im_start|>assistant\n' + content }}{% endif %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)

PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

PHI_4 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)

# The prompt begins the thought; rendered answers have lost theirs.
DEEPSEEK_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{% else %}{{ '<｜Assistant｜>' + m['content'].split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"
)

HARMONY = (
    "{{ '<|start|>system<|message|>You are ChatGPT, a large language model trained by OpenAI.<|end|>' }}"
    "{% if messages[0].role in ('system', 'developer') %}{% set rest = messages[1:] %}"
    "{{ '<|start|>developer<|message|># Instructions\n\n' + messages[0].content + '\n\n<|end|>' }}"
    "{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}{{ '<|start|>user<|message|>' + m.content + '<|end|>' }}"
    "{% elif m.tool_calls %}{% if m.thinking %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant to=functions.' + m.tool_calls[0].function.name + '<|channel|>commentary json<|message|>'"
    " + (m.tool_calls[0].function.arguments | tojson) + '<|call|>' }}"
    "{% elif m.role == 'tool' %}{{ '<|start|>functions.f to=assistant<|channel|>commentary<|message|>'"
    " + (m.content | tojson) + '<|end|>' }}"
    "{% elif loop.last and not add_generation_prompt %}{% if m.thinking %}"
    "{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}"
    "{% else %}{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)

COMMAND_R = (
    "{{ bos_token }}{% for m in messages %}{% set who = {'system': '<|SYSTEM_TOKEN|>', 'user': '<|USER_TOKEN|>',"
    " 'assistant': '<|CHATBOT_TOKEN|>'}[m['role']] %}"
    "{{ '<|START_OF_TURN_TOKEN|>' + who + m['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)

# Two tokens end an answer, and the talk goes on after both.
COMMAND_A = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' + m['content']"
    " + '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}"
    "{% else %}{{ '<|START_OF_TURN_TOKEN|>' + ('<|USER_TOKEN|>' if m['role'] == 'user' else '<|SYSTEM_TOKEN|>')"
    " + m['content'] + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)

GRANITE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|start_of_role|>system<|end_of_role|>You are Granite, developed by IBM.<|end_of_text|>\n' }}{% endif %}"
    "{% for m in messages %}"
    "{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)

SMOLLM_2 = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Marks what is to be learnt, with the turn's head in the mark.
SMOLLM_3 = (
    "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ '<|im_start|>assistant\n' + m.content.lstrip('\n') + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

IM = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
INST = ("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]", "[/TOOL_RESULTS]")  # fmt: skip
COHERE = ("<BOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>",
          "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>")  # fmt: skip
R1 = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
OSS = ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>", "<|startoftext|>",
       "<|endoftext|>")  # fmt: skip
MOVES = "the system message stands before the last question"

FAMILIES = (
    Family("ChatML", CHATML, "<|im_end|>", IM, ("Tejo<|im_end|>", "Douro<|im_end|>"), ("<|im_end|>",)),
    Family("Llama 2", LLAMA_2, "</s>", ("<s>", "</s>"), (" Tejo </s>", " Douro </s>"), ("</s>",), bos="<s>",
           why="blanks around the answer are part of it"),
    Family("Llama 3", LLAMA_3, "<|end_of_text|>",
           ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
           ("Tejo<|eot_id|>", "Douro<|eot_id|>"), ("<|end_of_text|>", "<|eot_id|>"), bos="<|begin_of_text|>",
           why="the base's EOS is another token"),
    Family("Mistral v1", MISTRAL_V1, "</s>", ("<s>", "</s>"), ("Tejo</s>", "Douro</s>"), ("</s>",), bos="<s>",
           system=False, why="refuses a system message"),
    Family("Mistral v3", MISTRAL_V3, "</s>", INST, (" Tejo</s>", " Douro</s>"), ("</s>",), 2, bos="<s>", why=MOVES),
    Family("Mistral tekken", TEKKEN, "</s>", INST, ("Tejo</s>", "Douro</s>"), ("</s>",), 2, bos="<s>", why=MOVES),
    Family("Gemma 2", GEMMA_2, "<eos>", ("<bos>", "<start_of_turn>", "<end_of_turn>"),
           ("Tejo<end_of_turn>", "Douro<end_of_turn>"), ("<eos>", "<end_of_turn>"), bos="<bos>", system=False,
           why="refuses a system message; the tokenizer's EOS is another token"),
    Family("Gemma 3", GEMMA_3, "<eos>", ("<bos>", "<start_of_turn>", "<end_of_turn>"),
           ("Tejo<end_of_turn>", "Douro<end_of_turn>"), ("<eos>", "<end_of_turn>"), bos="<bos>",
           why="the tokenizer's EOS is another token"),
    Family("Gemma 4", GEMMA_4, "<eos>", ("<bos>", "<|turn>", "<turn|>", "<|channel>", "<channel|>"),
           ("Tejo<turn|>", "Douro<turn|>"), ("<eos>", "<turn|>"), 2, bos="<bos>",
           why="the prompt has an empty thought that earlier turns have not"),
    Family("Qwen 2.5 base", QWEN_25, "<|endoftext|>", IM, ("Tejo<|im_end|>", "Douro<|im_end|>"),
           ("<|endoftext|>", "<|im_end|>"), why="the tokenizer's EOS is another token"),
    Family("Qwen 2.5 instruct", QWEN_25, "<|im_end|>", IM, ("Tejo<|im_end|>", "Douro<|im_end|>"), ("<|im_end|>",)),
    Family("Qwen 3 thinking", QWEN_3, "<|im_end|>", IM,
           ("<think>\nIn Lisbon?\n</think>\n\nTejo<|im_end|>", "<think>\nPorto.\n</think>\n\nDouro<|im_end|>"),
           ("<|im_end|>",), 2, thinks=True, why="earlier turns lose their thoughts"),
    Family("Phi 3", PHI_3, "<|endoftext|>", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
           ("Tejo<|end|>", "Douro<|end|>"), ("<|endoftext|>", "<|end|>"),
           why="`<|endoftext|>` follows the last turn, and is not the model's to write"),
    Family("Phi 4", PHI_4, "<|im_end|>", (*IM, "<|im_sep|>"), ("Tejo<|im_end|>", "Douro<|im_end|>"), ("<|im_end|>",)),
    Family("DeepSeek R1", DEEPSEEK_R1, "<｜end▁of▁sentence｜>", R1,
           ("In Lisbon?\n</think>\n\nTejo<｜end▁of▁sentence｜>", "Porto.\n</think>\n\nDouro<｜end▁of▁sentence｜>"),
           ("<｜end▁of▁sentence｜>",), 2, bos="<｜begin▁of▁sentence｜>", thinks=True,
           why="the prompt begins the thought; the template drops thoughts, also the last"),
    Family("gpt-oss (harmony)", HARMONY, "<|return|>", OSS,
           ("<|channel|>analysis<|message|>In Lisbon?<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Tejo<|return|>",
            "<|channel|>analysis<|message|>Porto.<|end|>"
            "<|start|>assistant<|channel|>final<|message|>Douro<|return|>"),
           ("<|return|>", "<|call|>"), 2, thinks=True, why="`<|return|>` ends an answer, `<|end|>` an earlier one"),
    Family("Command R", COMMAND_R, "<|END_OF_TURN_TOKEN|>", COHERE,
           ("Tejo<|END_OF_TURN_TOKEN|>", "Douro<|END_OF_TURN_TOKEN|>"), ("<|END_OF_TURN_TOKEN|>",), bos="<BOS_TOKEN>"),
    Family("Command A", COMMAND_A, "<|END_OF_TURN_TOKEN|>", COHERE,
           ("<|START_RESPONSE|>Tejo<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
            "<|START_RESPONSE|>Douro<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
           ("<|END_OF_TURN_TOKEN|>",), bos="<BOS_TOKEN>", why="two tokens end an answer"),
    Family("Granite", GRANITE, "<|end_of_text|>", ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
           ("Tejo<|end_of_text|>", "Douro<|end_of_text|>"), ("<|end_of_text|>",)),
    Family("SmolLM 2", SMOLLM_2, "<|im_end|>", IM, ("Tejo<|im_end|>", "Douro<|im_end|>"), ("<|im_end|>",)),
    Family("SmolLM 3", SMOLLM_3, "<|im_end|>", IM, ("Tejo<|im_end|>", "Douro<|im_end|>"), ("<|im_end|>",),
           why="`{% generation %}` marks hold the turn's head too; what the prompt has is not learnt"),
)  # fmt: skip
