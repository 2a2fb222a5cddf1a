"""What an LLM's chat template makes of turns, and whether it keeps them."""

import re

from jinja2.exceptions import TemplateError

# What a chat template that asks for the day's date is told, in any form:
# prompts, and what comes of them, are the same every day. The + keeps a newline
# at the template's beginning.
_SAME_DATE = "{% macro strftime_now(form) %}26 Jul 2024{% endmacro +%}"
# A character for private use, which no template holds.
_ANSWER = "\ue005"


class Chat:
    """The chat template of a tokenizer; without one turns are paragraphs.

    Arguments
    ---------
    tokenizer : transformers.PreTrainedTokenizerFast
        The LLM's tokenizer.
    **options : dict
        What else its chat template takes, such as ``enable_thinking``.

    Example
    -------
    >>> from emoq_modules.lobes.backbones import load_tokenizer
    >>> from emoq_modules.lobes.small_backbones import build_llm
    >>> folder = build_llm(getfixture("tmp_path"), ["Oh no!"], ["sad"])
    >>> chat = Chat(load_tokenizer(folder))
    >>> chat.render("Be kind.", "Hello!").splitlines()[-2:]
    ['Hello!<|im_end|>', '<|im_start|>assistant']
    >>> chat.closing()
    '<|im_end|>'
    """

    def __init__(self, tokenizer, **options):
        self.tokenizer = tokenizer
        self.options = options

    def render(self, system, user, answer=None):
        """Renders a chat, up to the assistant's turn or with its answer.

        Arguments
        ---------
        system : str
            The system turn; it begins the user's where there can be none.
        user : str
            The user's turn.
        answer : str | None
            The assistant's.

        Returns
        -------
        str
            The chat, with the special tokens of the template.
        """
        if self.tokenizer.chat_template is None:
            bos = self.tokenizer.bos_token or ""
            return f"{bos}{system}\n\n{user}\n\n{answer or ''}"
        system_turn = {"role": "system", "content": system}
        user_turn = {"role": "user", "content": user}
        turns = [{"role": "assistant", "content": answer}] * bool(answer)
        options = {
            "tokenize": False,
            "add_generation_prompt": answer is None,
            "chat_template": _SAME_DATE + self.tokenizer.get_chat_template(),
            **self.options,
        }
        apply = self.tokenizer.apply_chat_template
        try:
            return apply([system_turn, user_turn, *turns], **options)
        except TemplateError:  # Gemma's, for one, knows no system turn.
            user_turn["content"] = f"{system}\n\n{user}"
            return apply([user_turn, *turns], **options)

    def closing(self):
        """What the template ends an assistant's turn with.

        Returns
        -------
        str
            Empty if that is nothing.
        """
        return self._around_an_answer("a", "b")[1].strip()

    def check(self, system, user, answer, begins=False):
        """Refuses a template that loses a line, or opens a thought.

        Arguments
        ---------
        system : str
            The system turn.
        user : str
            The user's turn.
        answer : str
            What the assistant's turn is to begin with.
        begins : bool
            Whether it has to begin as the template has it.

        Raises
        ------
        ValueError
            If the template does not fit.
        """
        found, end = self.render(system, user), 0
        for line in map(str.strip, f"{system}\n{user}".splitlines()):
            place = found.find(line, end)
            if place < 0:
                raise ValueError(
                    "The chat template of the LLM's tokenizer leaves "
                    f"{line!r} out of the prompt, or has it in another place: "
                    "choose another LLM, or give its tokenizer's folder "
                    "another chat_template.jinja."
                )
            end = place + len(line)
        before = self._around_an_answer(system, user)[0].rstrip()
        if begins and not f"{found}{answer}".startswith(before):
            lacks = before.removeprefix(found)
            raise ValueError(
                "The chat template of the LLM's tokenizer has "
                f"{lacks[-80:]!r} before what the assistant says, and the "
                "prompt has not: let chat_template_options write it (such as "
                "enable_thinking: False), or begin the prompt's answer with it."
            )
        opened = re.search(r"<(\w+)>\s*$", found[max(end, len(before)) :])
        if opened and f"</{opened[1]}>" not in answer:
            raise ValueError(
                "The chat template of the LLM's tokenizer begins the "
                f"assistant's turn with {opened[0].strip()!r}: switch that off "
                "by chat_template_options, or end it in the prompt's answer."
            )

    def _around_an_answer(self, system, user):
        try:
            chat = self.render(system, user, _ANSWER)
        except TemplateError:  # it knows none
            return "", ""
        before, _, after = chat.rpartition(_ANSWER)
        return before, after


def choose_words(labels, words=None):
    """Finds what the LLM says for each label.

    Arguments
    ---------
    labels : list of str
        The classes, in their order.
    words : dict | None
        Words of labels that are not said themselves.

    Returns
    -------
    list of str
        A word for each label.

    Raises
    ------
    ValueError
        Where a word is no label's or that of two, or holds a comma, which is
        between words in the prompt.

    Example
    -------
    >>> choose_words(["angry", "sad"], {"sad": "sadness"})
    ['angry', 'sadness']
    """
    words = words or {}
    if not isinstance(words, dict):
        raise ValueError(
            f"words is {words!r}; it has to be a mapping, as {{sad: sadness}}."
        )
    if others := set(words) - set(labels):
        raise ValueError(
            f"There are words for {', '.join(sorted(map(str, others)))}, "
            f"but the labels are {', '.join(labels)}."
        )
    chosen = [words.get(label, label) for label in labels]
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"An emotion word occurs twice in {chosen}.")
    for word in chosen:
        if not isinstance(word, str) or "," in word or not word.strip():
            raise ValueError(
                f"The emotion word {word!r} cannot stand in the prompt's list: "
                "it has to be text without a comma. Give the label another by "
                "--words, or by --label_map where the corpus is a table."
            )
    return chosen
