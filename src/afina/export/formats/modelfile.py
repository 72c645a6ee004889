"""The `Modelfile` by which Ollama takes a GGUF: base, adapter, template, system message, what ends an answer.

Ollama's templates are Go's, chat templates Jinja's. One is not translated into the other: the chat template is asked
what it writes around messages, a template of Ollama's is made of that, and it is kept if it writes the same for
conversations of several forms.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ...errors import AfinaError
from ...train.answers.generate import end_tokens
from ...train.tasks.base import Trained

_S, _U, _A = "\x02system\x03", "\x02user\x03", "\x02answer\x03"


@dataclass(frozen=True)
class Around:
    """What a chat template writes around a system message, a question and an answer.

    Attributes:
        start: what begins a conversation with a system message, up to it.
        bare: what begins one without.
        between: between the system message and the first question.
        middle: between question and answer.
        end: between an answer and the next question.
    """

    start: str
    bare: str
    between: str
    middle: str
    end: str

    @property
    def template(self) -> str:
        """Ollama's."""
        start, bare, between, middle, end = (
            _quoted(text) for text in (self.start, self.bare, self.between, self.middle, self.end)
        )
        before = (
            f'{{{{ if eq $last "" }}}}{bare}{{{{ else if eq $last "system" }}}}{between}'
            f"{{{{ else }}}}{end}{{{{ end }}}}"
        )
        return (
            '{{- $last := "" }}{{- range .Messages }}'
            f'{{{{ if eq .Role "system" }}}}{start}{{{{ .Content }}}}'
            f'{{{{ else if eq .Role "user" }}}}{before}{{{{ .Content }}}}{middle}'
            "{{ else }}{{ .Content }}{{ end }}{{ $last = .Role }}{{ end }}"
        )


def _quoted(text: str) -> str:
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if "{{" in text or '"' in text else text


def around(prompter: Any) -> Around | None:
    """What the tokenizer's chat template writes around messages; None where that does not tell all of it."""
    if not prompter.chats:
        return None
    system, user = {"role": "system", "content": _S}, {"role": "user", "content": _U}
    try:
        bare, full = prompter.opened([user]), prompter.opened([system, user])
        longer = prompter.opened([system, user, {"role": "assistant", "content": _A}, user])
    except AfinaError:
        return None
    if bare.count(_U) != 1 or full.count(_U) != 1 or full.count(_S) != 1 or longer.count(_A) != 1:
        return None
    start, _, rest = full.partition(_S)
    between, _, middle = rest.partition(_U)
    begun, _, bare_middle = bare.partition(_U)
    behind = longer.partition(_A)[2].partition(_U)[0]
    found = Around(start, begun, between, middle, behind)
    talk = start + _S + between + _U + middle + _A + behind + _U + middle
    return found if bare_middle == middle and talk == longer else None


def _base(trained: Trained) -> str:
    """The base as Ollama may find it: a folder, a name, or a package's file beside the Modelfile."""
    path = trained.recipe.model.path
    return f"./{path.rpartition('/')[2]}" if path.startswith("package:") else path


def modelfile(trained: Trained, model: str | None, adapter: str | None = None) -> str:
    """The text of a Modelfile.

    Args:
        model: the model's file; None where only the adapter was written, whose base is named then.
        adapter: the adapter's file.
    """
    prompter = trained.prompter
    lines = [f"FROM {model or _base(trained)}", *([f"ADAPTER {adapter}"] if adapter else [])]
    found = around(prompter)
    if found is not None and '"""' not in found.template:
        lines.append(f'TEMPLATE """{found.template}"""')
    elif prompter.chats:
        lines.append("# Ollama's templates cannot write what this chat template writes; it is in the GGUF.")
    else:
        lines.append('TEMPLATE """{{ .Prompt }}{{ .Response }}"""')
    if trained.recipe.data.system and '"""' not in trained.recipe.data.system:
        lines.append(f'SYSTEM """{trained.recipe.data.system}"""')
    ends = prompter.tokenizer.convert_ids_to_tokens(end_tokens(trained.model, prompter))
    lines += [f"PARAMETER stop {json.dumps(token, ensure_ascii=False)}" for token in ends]
    return "\n".join([*lines, ""])
