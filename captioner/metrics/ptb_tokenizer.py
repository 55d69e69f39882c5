r"""The tokens that coco-caption scores: those of Stanford's PTBTokenizer as pycocoevalcap runs it, without Java.

That is CoreNLP 3.4.1 with ``-preserveLines -lowerCase`` on a file of one caption a line; punctuation is then dropped.
At each place of the text all rules are tried and the longest match wins, of equally long ones the first in
:data:`RULES`; the text that a rule requires *behind* the token counts towards its length. Text that matches no rule is
dropped. The rules reproduce the output of the program; they were checked against it on millions of strings. Not
reproduced: alphabets newer than 2010, a final sigma after a digit, an address before a no-break space. Unlike there,
full stops, commas and the like of other scripts are dropped, too, characters are composed first (Unicode's NFC), so
that a caption scores the same in both forms, and more than LONGEST of them without a space are divided.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import chain

DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
FOREIGN = frozenset("।॥՜՝՞։،؛؟۔、。，．：；？！")  # the same of other scripts, which coco-caption keeps
LONGEST = 256  # characters without a space that are read together: the rules take quadratic time or worse
_TOO_LONG = re.compile(rf"\S{{{LONGEST}}}(?=\S)")
_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))


def _char_class(ranges: str) -> str:
    """The inside of a character class from code points and ranges in hex."""
    return "".join("-".join(re.escape(chr(int(end, 16))) for end in part.split("-")) for part in ranges.split())


# Matched by \w but not letters to the tokenizer: numerals other than digits, letters newer than Unicode 6.
_NOT_LETTERS = _char_class(
    "b2-b3 b9 bc-be 37f 528-52f 560 588 5ef 860-88e 8a1 8ad-8c9 978 980 9f4-9fc af9 b72-b77 bf0-bf2 c34 c5a-c5d "
    "c78-c80 cdd d04 d54-d5f d70-d78 e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac f2a-f33 1369-137c 13f5-13fd 16ee-16f8 "
    "170d 171f 17f0-17f9 1878 191d-191e 19b0-19c0 19c8-19c9 19da 1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2070 2074-2079 "
    "2080-2089 2150-2182 2185-2793 2c2f 2c5f 2cfd 3007-3029 3038-303a 312e-312f 3192-3195 31bb-31bf 3220-32bf "
    "4db6-4dbf 9fcd-9fff a698-a69d a6e6-a6ef a78f a794-a79f a7ab-a7f7 a830-a835 a8fd-a8fe a9e0-a9fe aa7e-aa7f "
    "ab30-abbf 10000-10ffff"
)
# Accents and other marks: part of words, but not of compounds with hyphens.
_MARKS = _char_class(
    "ad 2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7 "
    "615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 962-963 "
    "981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 "
    "bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd"
)
# Signs that are tokens by themselves.
_SIGNS = _char_class(
    "21 23-2f 3a-40 5b-60 7b-7e a1 a5-a9 ac ae-b4 b6-b9 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c "
    "614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 201a 201e 2020-2023 2030-2038 203b "
    "203e-2042 2044 2070 2074-207e 2080-208e 20a4 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 "
    "2129 212e 213a-213b 2140-2144 214a-214d 214f 2155-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 "
    "ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"
)
_ALPHA = rf"[^\W\d_{_NOT_LETTERS}]"
_LETTER = rf"(?:{_ALPHA}|[{_MARKS}]|&[aeiouAEIOU](?ai:acute|grave|uml);)"
_ALNUM = rf"(?:{_ALPHA}|\d)"
_SPACE = r"[ \t\xa0\u2000-\u200a\u3000]"
_SPACE_NL = r"[ \t\xa0\u2000-\u200a\u3000\n]"
_APOS = r"(?:['\x92’]|&(?ai:apos);)"
_APOS_LIKE = r"(?:['\x92’`\x91‘‛]|&(?ai:apos);)"
_WORD = rf"{_LETTER}(?:{_LETTER}|\d)*(?:[.!?]{_LETTER}(?:{_LETTER}|\d)*)*"
_COMPOUND_PART = rf"(?:[dDoOlL]{_APOS_LIKE}{_ALNUM})?{_ALNUM}+"
_COMPOUND = rf"{_COMPOUND_PART}(?:[-_\u058a\u2010\u2011]{_COMPOUND_PART})*"  # o'clock, black-and-white, 2x4
_CHAIN = r"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\xad]+))+"  # 5.5-inch, non-U.S.
_COMPANY = "[A-Z]+(?:(?:&(?ai:amp);|[+&])[A-Z]+)+"  # AT&T
_CLITIC = rf"{_APOS}(?ai:[msd]|re|ve|ll)"  # man's, they've
_NOT = rf"[nN]{_APOS_LIKE}[tT]"

# Abbreviations that keep their full stop: always, if capitalised, if no letter follows it directly, before a number.
_ANYWHERE = (
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|fri|ala|ariz|calif|colo|conn|ct|dak|fla|"
    "ga|ind|kan|kans|ky|md|mich|minn|mo|mont|neb|nev|okla|penn|tenn|va|vt|wis|wisc|wyo|inc|co|cos|corp|ltd|plc|rt|bancorp|"
    "bhd|assn|univ|intl|sys|jr|sr|bros|blvd|rd|esq|al|etc|est|ext|sq|seq|bldg|tel"
)
_CAPITAL = "ark|az|del|ill|la|mass|miss|ore|pa|tex|wash"
_TITLE = (
    "adj|adm|adv|alex|assoc|asst|atty|attys|ave|brig|capt|cf|cie|cmdr|col|comdr|cpl|dept|det|dr|drs|elec|ens|ft|gen|gov|"
    "govs|hon|insp|invt|jos|lieut|lt|maj|messrs|mlle|mme|mr|mrs|ms|msgr|mt|natl|pfc|ph|pres|prof|profs|pvt|rep|reps|rev|"
    "sen|sens|sfc|sgt|spc|st|ste|supt|treas|v|vs|wm"
)
_NUMBERED = "no|nos|fig|figs|art|ca|op|pp|prop|ph"
_ABBREVIATION = rf"(?:(?ai:{_ANYWHERE}|(?:ph|ed)\.d)|(?=[A-Z])(?ai:{_CAPITAL})|(?ai:p?pt)[ey][sS]?)\."
# A letter loses its full stop before one of these.
_OPENERS = re.sub(
    r"\B\w+",
    r"(?ai:\g<0>)",
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr[.]|Ms[.]|Now|"
    "Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You",
)
_FILE_TYPES = (
    "bat|bmp|bz2|class|cgi|cpp|c|dll|docx|doc|exe|gif|gz|html|htm|h|jar|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py|"
    "sql|tar|txt|wav|xml|x|zip"
)
_NAME = "[A-Za-z][A-Za-z0-9_:.-]*"
_TAG = rf"<(?:[!?][A-Za-z-][^>\n]{{0,999}}|{_NAME}(?: +(?:{_NAME} *= *['\"][^\n'\"]*['\"]|{_NAME}))* */?|/{_NAME}) *>"
_STOP = r" \t\n\"<>|.!?(){},"  # no address has these anywhere


def _normal(token: str) -> str:
    """Without soft hyphens, and with & for &amp;: how most tokens are written."""
    return re.sub("\xad|(?<=&)(?ai:amp);", "", token) if "&" in token or "\xad" in token else token


def _drop(token: str) -> str:
    return ""


def _no_break(token: str) -> str:
    """One token in spite of its spaces."""
    return token.replace(" ", "\xa0")


def _bracket_names(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-")


def _ascii_apostrophes(token: str) -> str:
    return re.sub(r"[\x92’]|&apos;", "'", re.sub(r"[\x91‘‛]", "`", token))


_QUOTES = str.maketrans(
    {"‘": "`", "‛": "`", "‹": "`", "\x91": "`", "’": "'", "›": "'", "\x92": "'"}
    | {"“": "``", "«": "``", "\x93": "``", "”": "''", "»": "''", "\x94": "''"}
)
_SIGN_NAMES = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SIGN_NAMES |= {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "&lt;": "<", "&gt;": ">"}
_SIGN_NAMES |= {"¢": "cents", "£": "#"} | dict.fromkeys("¤₠€\x80", "$")

# (token, what must follow it, how it is written; str leaves it unchanged)
RULES: list[tuple[str, str, Callable[[str], str]]] = [
    # Words cut in two.
    ("(?ai:can)", "(?ai:not)", _normal),
    ("(?ai:gon|wan)", "(?ai:na)", _normal),
    ("(?ai:got)", "(?ai:ta)", _normal),
    ("(?ai:lem|gim)", "(?ai:me)", _normal),
    # <b>, <a href="x">, </p>, <!-- x -->
    (_TAG, "", _no_break),
    # Words; those with an apostrophe.
    (r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", _NOT, _normal),
    (_NOT, "", _ascii_apostrophes),
    (_WORD, _CLITIC, _normal),
    (_WORD, "", _normal),
    (rf"{_APOS}[nN]{_APOS}|{_APOS}[nN]|{_APOS}(?ai:em|till?|cause)|{_APOS}[2-9]0[sS]", "", _normal),
    (rf"(?ai:dunkin|somethin|ol){_APOS}|(?ai:cap{_APOS}n|c{_APOS}est|cont{_APOS}d\.|o{_APOS_LIKE}o)", "", _normal),
    ("(?ai:c'mon|e'er|s'mores|ev'ry|li'l|nat'l)", "", _normal),
    (rf"{_ALPHA}+[aeiouyAEIOUY]{_APOS_LIKE}[aeiouA-Z]{_ALPHA}*", "", _normal),  # ma'am
    (rf"[A-HJ-XZdlno]{_APOS_LIKE}{_ALPHA}{{2,}}", "", _normal),  # O'Brien
    (rf"[lLdDjJ]{_APOS}", "", _normal),
    (r"[cCfF]#|[cC]\+\+|(?ai:pro|anti)-|C\.D\.s|(?ai:s(?:&|&amp;)(?:p-500|ls))", "", _normal),
    (rf"{_APOS}[0-9]{{2}}", _SPACE_NL, _normal),  # '99
    (rf"[yY]{_APOS}", _ALPHA, _normal),  # y' all
    ("'[tT]", "(?ai:is|was)", _normal),
    # Addresses.
    (r"(?ai:https?)://[^ \t\n\"<>|(){}]+[^ \t\n\"<>|.!?(){},-]", "", str),
    (
        rf"(?:(?ai:www)\.(?:[^{_STOP}]+\.)+[a-zA-Z]{{2,4}}|(?:[^{_STOP}`',-_$]+\.)+(?ai:com|net|org|edu))"
        rf"(?:/[^ \t\n\"<>|()]+[^{_STOP}-])?",
        "",
        str,
    ),
    (
        r"(?:&(?ai:lt);|<)?[a-zA-Z0-9][^ \t\n\"<>|(){}\xa0]*@"
        r"(?:[^ \t\n\"<>|(){}.\xa0]+\.)*[^ \t\n\"<>|(){}.\xa0]+(?:&(?ai:gt);|>)?",
        "",
        str,
    ),
    ("@[a-zA-Z_][a-zA-Z_0-9]*", "", str),
    (rf"#{_LETTER}+", "", str),
    (_CLITIC, "[^A-Za-z]", _ascii_apostrophes),
    # Numbers.
    (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", "", _normal),
    (r"[-+]?(?:\d*(?:[.:,\xad\u066b\u066c]\d+)+|\d+)", "", _normal),
    ("[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)", "", str),
    (r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4}", "", _no_break),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", "", _normal),  # and/or
    (r"[A-Z]*\$", "", str),
    # Abbreviations.
    ("[A-Za-z]", rf"\.{_SPACE_NL}+(?:{_OPENERS}|{_TAG}){_SPACE_NL}", _normal),
    (_ABBREVIATION, "(?s:..)", _normal),
    (_ABBREVIATION, "", _normal),
    (rf"(?:(?ai:[a-z]|{_TITLE})|[mM][ft][gG])\.", "", _normal),
    (rf"(?ai:{_NUMBERED})\.", rf"{_SPACE_NL}?\d", _normal),
    (r"[A-Za-z](?:\.[A-Za-z])+\.", "", _normal),
    (r"(?ai:(?:canada|eu|japan|korean|non|sino)-u\.s|u\.s\.-u\.(?:k|s\.s\.r))", _SPACE_NL, _normal),
    (
        rf"(?:{_LETTER}|\d)+(?:\.(?:{_LETTER}|\d)+)*\.(?ai:{_FILE_TYPES})",
        rf"[.?!,]|{_SPACE_NL}",
        str,
    ),
    (rf"(?:{_CHAIN}|{_COMPANY}|{_COMPOUND}|{_WORD})\.", "[,;:、]", _normal),
    # Telephones.
    (
        r"(?:\([0-9]{2,3}\)[ \xa0]?|\+{0,2}(?:[0-9]{2,4}[- \xa0]){1,2})[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
        r"|(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        "",
        lambda token: _no_break(_bracket_names(token)),
    ),
    # :-) and ^_^
    (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _bracket_names),
    (r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>']\)", "", _bracket_names),
    # Compounds with hyphens, & or +.
    (_COMPOUND, "", _normal),
    (_CHAIN, "", _normal),
    (_COMPANY, "", _normal),
    # Signs.
    (r"&(?ai:md|[mn]dash|nbsp);|[\x96\x97–—―]|\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85…]", "", _drop),
    ("&(?ai:amp);", "", _normal),
    ("&(?:(?ai:ht|tl|ur|lr|qc|ql|qr|odq|cdq)|#[0-9]+);", "", str),
    ("-{5,}", "", str),
    ("-{1,4}", "", _drop),
    (r"@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+|<<|>>|''", "", str),
    ("'", r"[A-Za-z][^ \t\n\xa0]", _drop),
    (_CLITIC, "", _ascii_apostrophes),
    ("[`‘-‟‹›«»\x91-\x94]{1,2}", "", lambda token: token.translate(_QUOTES)),
    (rf"{_SPACE}+|\"|&quot;|&apos;", "", _drop),
    ("&(?ai:quot|apos);", "", str),
    (rf"&(?ai:[lg]t);|[{_SIGNS}¼½¾⅓⅔¢£¤€₠\x80]", "", lambda token: _SIGN_NAMES.get(token.lower(), token)),
]
# One match gives the end of each rule: group 2i + 1 is rule i with what must follow, group 2i + 2 its token.
_ALL = re.compile("".join(f"(?:(?=(({token})(?:{follows}))))?" for token, follows, _ in RULES))
# A fast path for most words: plain ASCII letters, except those cut in two and those that may keep a full stop.
_EASY = re.compile(r"[ \t]*([A-Za-z]+)([.,!?;:]?)(?=[ \t\n])(?! \.)")
_CUT = frozenset(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"))
_STOPPED = re.compile(f"[a-z]|{_ANYWHERE}|{_CAPITAL}|{_TITLE}|{_NUMBERED}|p?pt[ey]s?|m[ft]g")
# An end of a chunk that may belong to a token with what comes after the space.
_OPEN = re.compile(rf"<|\d\)?\s*$|(?:^|[^A-Za-z]|'[A-Za-z0-9]+)(?ai:[a-z]|{_NUMBERED})\.\s*$")


def ptb_tokenize(text: str, rest: str = "") -> list[str]:
    """Tokens of one caption.

    Args:
        text: the caption. Line breaks in it count as spaces.
        rest: the file behind the caption, from its line break on; empty at the end of the file. It decides about a
            full stop at the end: "plan b." gives ``b`` if the next caption begins with "A" or "The", else ``b.``, and
            "no." keeps its stop before a digit.
    """
    text = _one_line(text)
    if text.isascii() and ". ." not in text:
        *chunks, last = text.split(" ")
        parts = [*map(_chunk, chunks), _chunk(last) if rest else tuple(_lex(last, ""))]
        if None not in parts:
            return list(chain.from_iterable(parts))  # type: ignore[arg-type]
    return _lex(text, rest)


def ptb_tokenize_all(texts: Iterable[str]) -> list[list[str]]:
    """Tokens of each caption, exactly as coco-caption makes them of a file of all captions in this order."""
    words, rest = [], ""
    for text in reversed(list(texts)):
        words.append(ptb_tokenize(text, rest))
        text = _one_line(text)
        rest = "\n" + text + (rest[:1] if text.strip() else rest)
    return words[::-1]


def _one_line(text: str) -> str:
    """Without line breaks, of composed characters (NFC), and no more than LONGEST of them without a space."""
    if not (text.isascii() and text.isprintable()):
        text = unicodedata.normalize("NFC", text.translate(_BREAKS))
    return text if len(text) <= LONGEST else _TOO_LONG.sub(r"\g<0> ", text)


@lru_cache(maxsize=1 << 16)
def _chunk(chunk: str) -> tuple[str, ...] | None:
    """Tokens of ASCII text between two spaces; None if they may depend on the text after it."""
    return None if _OPEN.search(chunk) else tuple(_lex(chunk, "\n\n"))


def _lex(text: str, rest: str) -> list[str]:
    """Tokens of a text without line breaks, with `rest` behind it in the file."""
    pairs = not text.isascii()
    if pairs:  # to Java a character outside the basic plane is two
        text = re.sub("[\U00010000-\U0010ffff]", "\\g<0>\ud800", text)
    words, place, end = [], 0, len(text)
    text += rest
    while place < end:
        if easy := _EASY.match(text, place):
            word = easy[1].lower()
            if word not in _CUT and not (easy[2] == "." and _STOPPED.fullmatch(word)):
                words.append(word)
                place = easy.end()
                continue
        spans = _ALL.match(text, place).regs  # type: ignore[union-attr]
        ends = spans[1::2]
        longest = max(ends)
        if longest[1] < 0:  # no rule matches
            place += 1
            continue
        rule = ends.index(longest)
        stop = spans[2 * rule + 2][1]
        word = RULES[rule][2](text[place:stop]).lower()
        if word and word not in DROPPED and word not in FOREIGN:
            words.append(word)
        place = stop
    return [unicodedata.normalize("NFC", word.replace("\ud800", "")) for word in words] if pairs else words
