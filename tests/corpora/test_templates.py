import pytest

from corpora.templates import Template

BOTH = ("title", "text")


def test_rendered_by_hand():
    passage = Template("document_template", "passage: {title} {text}", BOTH)
    words, title, text = passage.render("Ann", "sees {title}")
    assert words == "passage: Ann sees {title}"
    assert words[slice(*title)] == "Ann"
    assert words[slice(*text)] == "sees {title}"
    assert passage.text_is_last
    back = Template("document_template", "{{{text}}} of {title}", BOTH)
    assert back.render("b", "a").words == "{a} of b"
    assert not back.text_is_last
    assert Template("query_template", "{text}", ("text",)).render("", "a").title == (0, 0)


@pytest.mark.parametrize("title", ["", " ", "Ann", " Ann "])
@pytest.mark.parametrize("text", ["", "sees", " sees\n"])
def test_title_and_text_are_joined_as_beir_does(title, text):
    words, title_at, text_at = Template("x", "a: {title} {text}", BOTH).render(title, text)
    joined = (title + " " + text).strip()
    assert words == (f"a: {joined}" if joined else "a:")
    assert words[slice(*title_at)].strip() == title.strip()
    assert words[slice(*text_at)].strip() == text.strip()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("query:", r"x is 'query:': \{text\} occurs 0 times; allowed: once"),
        ("{text} {text}", "occurs 2 times; allowed: once"),
        ("{title}{title}{text}", "occurs 2 times; allowed: at most once"),
        ("{txt}", r"no field \{txt\} in this form; allowed: \{title\} and \{text\}"),
        ("{}", r"no field \{\} in this form"),
        ("{text!r}", r"no field \{text\} in this form"),
        ("{text:>9}", r"no field \{text\} in this form"),
        ("{text", "allowed fields: .*; {{ is a brace"),
        ("{text}}", "allowed fields"),
    ],
)
def test_a_wrong_template_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        Template("x", template, BOTH)


def test_queries_have_no_title():
    with pytest.raises(ValueError, match=r"no field \{title\} in this form; allowed: \{text\}"):
        Template("query_template", "{title} {text}", ("text",))
