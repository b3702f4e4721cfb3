"""How a text is put into words of its own before it is tokenized: "query: {text}", "{title}: {text}"."""

import string
from typing import NamedTuple


class Rendered(NamedTuple):
    """A template filled in; places are in characters.

    Attributes:
      words: what is tokenized.
      title: (start, end) of the title in it; (0, 0) where the template has none.
      text: (start, end) of the text.
    """

    words: str
    title: tuple[int, int]
    text: tuple[int, int]


class Template:
    """A string with the fields `{text}`, once, and for documents `{title}`, at most once; `{{` is a brace.

    Where there is a `{title}`, blanks before it, and after the text if that is last, are left out, and with
    an empty title those that follow it: what `prompt + (title + " " + text).strip()` makes, as BEIR joins
    them.

    Args:
      name: what to call it in an error, such as "query_template".
      template: the string.
      fields: those that are allowed.

    Raises:
      ValueError: another field, a field twice, no `{text}`, or a brace that is not closed.

    >>> Template("query_template", "query: {text}", ("text",)).render("", "how long").words
    'query: how long'
    """

    def __init__(self, name: str, template: str, fields: tuple[str, ...]):
        allowed = " and ".join(f"{{{field}}}" for field in fields)
        where = f"{name} is {template!r}"
        try:
            parts = list(string.Formatter().parse(template))
        except ValueError as error:
            raise ValueError(f"{where}: {error}; allowed fields: {allowed}; {{{{ is a brace") from None
        self._parts = [(literal, field) for literal, field, _, _ in parts]
        found = [field for _, field in self._parts if field is not None]
        self._has_title = "title" in found
        for _, field, form, conversion in parts:
            if field is not None and (field not in fields or form or conversion):
                raise ValueError(f"{where}: no field {{{field}}} in this form; allowed: {allowed}")
        for field in fields:
            times, least = found.count(field), int(field == "text")
            if not least <= times <= 1:
                often = "once" if least else "at most once"
                raise ValueError(f"{where}: {{{field}}} occurs {times} times; allowed: {often}")

    @property
    def text_is_last(self) -> bool:
        return self._parts[-1][1] == "text"

    def render(self, title: str, text: str) -> Rendered:
        """Fills the template in."""
        words, places = "", {"title": (0, 0)}
        values = {"title": title.lstrip(), "text": text if title.strip() else text.lstrip()}
        if not self._has_title:
            values["text"] = text
        after_no_title = False
        for literal, field in self._parts:
            words += literal.lstrip() if after_no_title else literal
            if field is not None:
                places[field] = len(words), len(words) + len(values[field])
                words += values[field]
            after_no_title = field == "title" and not values[field]
        if self._has_title and self.text_is_last:
            words = words.rstrip()
            start, end = places["text"]
            places["text"] = min(start, len(words)), min(end, len(words))
        return Rendered(words, **places)
