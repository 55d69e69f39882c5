r"""The words coco-caption scores: those of Stanford's PTBTokenizer as pycocoevalcap runs it, without Java.

That is CoreNLP 3.4.1 with ``-preserveLines -lowerCase`` on a file of one caption a line; punctuation is then dropped.
At each place of the text every rule is tried and the longest match wins, of equally long ones the first in
:data:`RULES`; what a rule wants to see *behind* the token counts towards its length. What no rule matches is dropped.
The rules say what the program does; they were checked against its answers for millions of strings. Left out
are oddities of alphabets newer than 2010, of a final sigma after a digit, and of an address before a no-break space.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from itertools import chain

DROPPED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
STARTS = "\nA\n"  # what follows a caption nobody says more about: most captions begin with A
_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))


def _set(ranges: str) -> str:
    """The inside of a character class from code points and ranges in hex."""
    return "".join("-".join(re.escape(chr(int(end, 16))) for end in part.split("-")) for part in ranges.split())


# What \w has and the tokenizer does not call a letter: numerals that are no digits, letters younger than Unicode 6.
_STRANGE = _set(
    "b2-b3 b9 bc-be 37f 528-52f 560 588 5ef 860-88e 8a1 8ad-8c9 978 980 9f4-9fc af9 b72-b77 bf0-bf2 c34 c5a-c5d "
    "c78-c80 cdd d04 d54-d5f d70-d78 e86 e89 e8c e8e-e93 e98 ea0 ea8-ea9 eac f2a-f33 1369-137c 13f5-13fd 16ee-16f8 "
    "170d 171f 17f0-17f9 1878 191d-191e 19b0-19c0 19c8-19c9 19da 1b4c 1c80-1cbf 1cf2-1cf3 1cfa 2070 2074-2079 "
    "2080-2089 2150-2182 2185-2793 2c2f 2c5f 2cfd 3007-3029 3038-303a 312e-312f 3192-3195 31bb-31bf 3220-32bf "
    "4db6-4dbf 9fcd-9fff a698-a69d a6e6-a6ef a78f a794-a79f a7ab-a7f7 a830-a835 a8fd-a8fe a9e0-a9fe aa7e-aa7f "
    "ab30-abbf 10000-10ffff"
)
# Accents and the like: part of words, but not of things with hyphens.
_MARKS = _set(
    "ad 2c2-2c5 2d2-2df 2e5-2eb 2ed 2ef-36f 375 378-379 384-385 3f6 483-487 55a-55f 591-5bd 5bf 5c1-5c2 5c4-5c5 5c7 "
    "615-61a 64b-65e 670 6d6-6e4 6e7-6ed 6fd-6fe 70f 711 730-74c 7a6-7b0 7eb-7f3 900-903 93c 93e-94e 951-955 962-963 "
    "981-983 9bc 9be-9c4 9c7-9c8 9cb-9cd 9d7 9e2-9e3 a01-a03 a3c a3e-a4f a81-a83 abc abe-acf b82 bbe-bc2 bc6-bc8 "
    "bca-bcd c01-c03 c3e-c56 d3e-d44 d46-d48 e31 e34-e3a e47-e4e eb1 eb4-ebc ec8-ecd"
)
# Signs that are words by themselves.
_SIGNS = _set(
    "21 23-2f 3a-40 5b-60 7b-7e a1 a5-a9 ac ae-b4 b6-b9 bf d7 f7 37e 387 589 5be 5c0 5c3 5c6 5f3-5f4 600-603 606-60c "
    "614 61b 61e-61f 66a 66d 6d4 700-70d 7f6-7f8 964-965 e3f e4f 1fbd 2016-2017 201a 201e 2020-2023 2030-2038 203b "
    "203e-2042 2044 2070 2074-207e 2080-208e 20a4 2100-2101 2103-2106 2108-2109 2114 2116-2118 211e-2123 2125 2127 "
    "2129 212e 213a-213b 2140-2144 214a-214d 214f 2155-215e 2190-2bff 3001-3002 3012 30fb ff01-ff0f ff1a-ff20 "
    "ff3b-ff40 ff5b-ff65 ffe0-ffe1 ffe5-ffe6"
)
_ALPHA = rf"[^\W\d_{_STRANGE}]"
_LETTER = rf"(?:{_ALPHA}|[{_MARKS}]|&[aeiouAEIOU](?ai:acute|grave|uml);)"
_ALNUM = rf"(?:{_ALPHA}|\d)"
_SPACE = r"[ \t\xa0\u2000-\u200a\u3000]"
_SPACE_NL = r"[ \t\xa0\u2000-\u200a\u3000\n]"
_APOS = r"(?:['\x92’]|&(?ai:apos);)"
_APOS_LIKE = r"(?:['\x92’`\x91‘‛]|&(?ai:apos);)"
_WORD = rf"{_LETTER}(?:{_LETTER}|\d)*(?:[.!?]{_LETTER}(?:{_LETTER}|\d)*)*"
_THING_PART = rf"(?:[dDoOlL]{_APOS_LIKE}{_ALNUM})?{_ALNUM}+"
_THING = rf"{_THING_PART}(?:[-_\u058a\u2010\u2011]{_THING_PART})*"  # o'clock, black-and-white, 2x4
_CHAIN = r"[A-Za-z0-9][A-Za-z0-9.,\xad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\xad]+))+"  # 5.5-inch, non-U.S.
_FIRM = "[A-Z]+(?:(?:&(?ai:amp);|[+&])[A-Z]+)+"  # AT&T
_SHORT = rf"{_APOS}(?ai:[msd]|re|ve|ll)"  # man's, they've
_NOT = rf"[nN]{_APOS_LIKE}[tT]"

# Abbreviations that keep their full stop: anywhere, only with a capital, unless glued to a letter, before digits.
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
# A letter with a full stop gives it up where one of these follows.
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
_TAG = rf"<(?:[!?][A-Za-z-][^>\n]*|{_NAME}(?: +(?:{_NAME} *= *['\"][^\n'\"]*['\"]|{_NAME}))* */?|/{_NAME}) *>"
_STOP = r" \t\n\"<>|.!?(){},"  # no address has these anywhere


def _plain(token: str) -> str:
    """Without soft hyphens, & for &amp;"""
    return re.sub("\xad|(?<=&)(?ai:amp);", "", token) if "&" in token or "\xad" in token else token


def _same(token: str) -> str:
    return token


def _nothing(token: str) -> str:
    return ""


def _spaced(token: str) -> str:
    """One word for all that, as the spaces no longer break."""
    return token.replace(" ", "\xa0")


def _rounded(token: str) -> str:
    return token.replace("(", "-lrb-").replace(")", "-rrb-")


def _phone(token: str) -> str:
    return _spaced(_rounded(token))


def _apostrophes(token: str) -> str:
    return re.sub(r"[\x92’]|&apos;", "'", re.sub(r"[\x91‘‛]", "`", token))


_QUOTES = str.maketrans(
    {"‘": "`", "‛": "`", "‹": "`", "\x91": "`", "’": "'", "›": "'", "\x92": "'"}
    | {"“": "``", "«": "``", "\x93": "``", "”": "''", "»": "''", "\x94": "''"}
)


def _quotes(token: str) -> str:
    return token.translate(_QUOTES)


_SPELLED = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_SPELLED |= {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "&lt;": "<", "&gt;": ">"}
_SPELLED |= {"¢": "cents", "£": "#"} | dict.fromkeys("¤₠€\x80", "$")


def _spelled(token: str) -> str:
    return _SPELLED.get(token.lower(), token)


# (token, what must follow it, how it is written)
RULES: list[tuple[str, str, Callable[[str], str]]] = [
    # Words cut in two.
    ("(?ai:can)", "(?ai:not)", _plain),
    ("(?ai:gon|wan)", "(?ai:na)", _plain),
    ("(?ai:got)", "(?ai:ta)", _plain),
    ("(?ai:lem|gim)", "(?ai:me)", _plain),
    # <b>, <a href="x">, </p>, <!-- x -->
    (_TAG, "", _spaced),
    # Words; those with an apostrophe.
    (r"[A-Za-z\xad]*[A-MO-Za-mo-z]\xad*", _NOT, _plain),
    (_NOT, "", _apostrophes),
    (_WORD, _SHORT, _plain),
    (_WORD, "", _plain),
    (rf"{_APOS}[nN]{_APOS}|{_APOS}[nN]|{_APOS}(?ai:em|till?|cause)|{_APOS}[2-9]0[sS]", "", _plain),
    (rf"(?ai:dunkin|somethin|ol){_APOS}|(?ai:cap{_APOS}n|c{_APOS}est|cont{_APOS}d\.|o{_APOS_LIKE}o)", "", _plain),
    ("(?ai:c'mon|e'er|s'mores|ev'ry|li'l|nat'l)", "", _plain),
    (rf"{_ALPHA}+[aeiouyAEIOUY]{_APOS_LIKE}[aeiouA-Z]{_ALPHA}*", "", _plain),  # ma'am
    (rf"[A-HJ-XZdlno]{_APOS_LIKE}{_ALPHA}{{2,}}", "", _plain),  # O'Brien
    (rf"[lLdDjJ]{_APOS}", "", _plain),
    (r"[cCfF]#|[cC]\+\+|(?ai:pro|anti)-|C\.D\.s|(?ai:s(?:&|&amp;)(?:p-500|ls))", "", _plain),
    (rf"{_APOS}[0-9]{{2}}", _SPACE_NL, _plain),  # '99
    (rf"[yY]{_APOS}", _ALPHA, _plain),  # y' all
    ("'[tT]", "(?ai:is|was)", _plain),
    # Addresses.
    (r"(?ai:https?)://[^ \t\n\"<>|(){}]+[^ \t\n\"<>|.!?(){},-]", "", _same),
    (
        rf"(?:(?ai:www)\.(?:[^{_STOP}]+\.)+[a-zA-Z]{{2,4}}|(?:[^{_STOP}`',-_$]+\.)+(?ai:com|net|org|edu))"
        rf"(?:/[^ \t\n\"<>|()]+[^{_STOP}-])?",
        "",
        _same,
    ),
    (
        r"(?:&(?ai:lt);|<)?[a-zA-Z0-9][^ \t\n\"<>|(){}\xa0]*@"
        r"(?:[^ \t\n\"<>|(){}.\xa0]+\.)*[^ \t\n\"<>|(){}.\xa0]+(?:&(?ai:gt);|>)?",
        "",
        _same,
    ),
    ("@[a-zA-Z_][a-zA-Z_0-9]*", "", _same),
    (rf"#{_LETTER}+", "", _same),
    (_SHORT, "[^A-Za-z]", _apostrophes),
    # Numbers.
    (r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}", "", _plain),
    (r"[-+]?(?:\d*(?:[.:,\xad\u066b\u066c]\d+)+|\d+)", "", _plain),
    ("[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)", "", _same),
    (r"(?:\d{1,4}[- \xa0])?\d{1,4}(?:\\?/|⁄)\d{1,4}", "", _spaced),
    (r"[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:\\?/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2}", "", _plain),  # and/or
    (r"[A-Z]*\$", "", _same),
    # Abbreviations.
    ("[A-Za-z]", rf"\.{_SPACE_NL}+(?:{_OPENERS}|{_TAG}){_SPACE_NL}", _plain),
    (_ABBREVIATION, "(?s:..)", _plain),
    (_ABBREVIATION, "", _plain),
    (rf"(?:(?ai:[a-z]|{_TITLE})|[mM][ft][gG])\.", "", _plain),
    (rf"(?ai:{_NUMBERED})\.", rf"{_SPACE_NL}?\d", _plain),
    (r"[A-Za-z](?:\.[A-Za-z])+\.", "", _plain),
    (r"(?ai:(?:canada|eu|japan|korean|non|sino)-u\.s|u\.s\.-u\.(?:k|s\.s\.r))", _SPACE_NL, _plain),
    (
        rf"(?:{_LETTER}|\d)+(?:\.(?:{_LETTER}|\d)+)*\.(?ai:{_FILE_TYPES})",
        rf"[.?!,]|{_SPACE_NL}",
        _same,
    ),
    (rf"(?:{_CHAIN}|{_FIRM}|{_THING}|{_WORD})\.", "[,;:、]", _plain),
    # Telephones.
    (
        r"(?:\([0-9]{2,3}\)[ \xa0]?|\+{0,2}(?:[0-9]{2,4}[- \xa0]){1,2})[0-9]{3,4}[- \xa0]?[0-9]{3,5}"
        r"|(?:\+{0,2}[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5}",
        "",
        _phone,
    ),
    # :-) and ^_^
    (r"[<>]?[:;=][-o*']?[()DPdpO\\{@|\[\]]", "[^A-Za-z0-9]", _rounded),
    (r"[-^x=~<>']_[-^x=~<>']|\([-^x=~<>'][_.]?[-^x=~<>']\)|\([\^x=~<>']-[\^x=~<>']\)", "", _rounded),
    # Things with hyphens, & or +.
    (_THING, "", _plain),
    (_CHAIN, "", _plain),
    (_FIRM, "", _plain),
    # Signs.
    (r"&(?ai:md|[mn]dash|nbsp);|[\x96\x97–—―]|\.{3,5}|(?:\.[ \xa0]){2,4}\.|[\x85…]", "", _nothing),
    ("&(?ai:amp);", "", _plain),
    ("&(?:(?ai:ht|tl|ur|lr|qc|ql|qr|odq|cdq)|#[0-9]+);", "", _same),
    ("-{5,}", "", _same),
    ("-{1,4}", "", _nothing),
    (r"@+|#+|_+|\*+|(?:\\\*){1,3}|[?!]+|<<|>>|''", "", _same),
    ("'", r"[A-Za-z][^ \t\n\xa0]", _nothing),
    (_SHORT, "", _apostrophes),
    ("[`‘-‟‹›«»\x91-\x94]{1,2}", "", _quotes),
    (rf"{_SPACE}+|\"|&quot;|&apos;", "", _nothing),
    ("&(?ai:quot|apos);", "", _same),
    (rf"&(?ai:[lg]t);|[{_SIGNS}¼½¾⅓⅔¢£¤€₠\x80]", "", _spelled),
]
# One match tells where each rule would end: group 2i + 1 is rule i with what must follow, group 2i + 2 its token.
_ALL = re.compile("".join(f"(?:(?=(({token})(?:{follows}))))?" for token, follows, _ in RULES))
# Words of plain letters, which is most, need no contest; except those cut in two, and short ones before a full stop.
_EASY = re.compile(r"[ \t]*([A-Za-z]+)([.,!?;:]?)(?=[ \t\n])(?! \.)")
_CUT = frozenset(("cannot", "gonna", "gotta", "lemme", "gimme", "wanna"))
_STOPPED = re.compile(f"[a-z]|{_ANYWHERE}|{_CAPITAL}|{_TITLE}|{_NUMBERED}|p?pt[ey]s?|m[ft]g")
# An end that may belong together with what comes after a space.
_OPEN = re.compile(rf"<|\d\)?\s*$|(?:^|[^A-Za-z]|'[A-Za-z0-9]+)(?ai:[a-z]|{_NUMBERED})\.\s*$")


def ptb_tokenize(text: str, rest: str = STARTS) -> list[str]:
    """Words of one caption.

    Args:
        text: the caption. Line breaks in it count as spaces.
        rest: what stands behind the caption in the file, a line break first; empty at the end of the file. It decides
            about a last word such as the ``b.`` of "plan b.", which is ``b`` where the next caption begins with "A" or
            "The" and ``b.`` elsewhere, and "no.", which keeps its full stop before a digit.
    """
    text = _one_line(text)
    if not (rest and text.isascii()) or ". ." in text:
        return _lex(text, rest)
    chunks = text.split(" ")
    parts = [_chunk(chunk) for chunk in chunks]
    if None not in parts:
        return list(chain.from_iterable(parts))  # type: ignore[arg-type]
    words: list[str] = []
    held: list[str] = []
    for chunk in chunks:
        held.append(chunk)
        joined = " ".join(held)
        part = (_chunk if len(joined) < 100 else _chunk.__wrapped__)(joined)  # long ones do not come again
        if part is not None:
            words += part
            held = []
    return words + _lex(" ".join(held), rest)


def ptb_tokenize_all(texts: Iterable[str]) -> list[list[str]]:
    """Words of each caption, exactly as coco-caption sees them with all in one file, in this order."""
    words, rest = [], ""
    for text in reversed(list(texts)):
        words.append(ptb_tokenize(text, rest))
        text = _one_line(text)
        rest = "\n" + text + (rest[:1] if text.strip() else rest)
    return words[::-1]


def _one_line(text: str) -> str:
    """`text` with spaces for line breaks."""
    return text if text.isprintable() else text.translate(_BREAKS)


@lru_cache(maxsize=1 << 16)
def _chunk(chunk: str) -> tuple[str, ...] | None:
    """Words of what stands between two spaces, all ASCII; None if they may depend on what comes next."""
    return None if _OPEN.search(chunk) else tuple(_lex(chunk, "\n\n"))


def _lex(text: str, rest: str) -> list[str]:
    """Words of a text of one line, with `rest` behind it in the file."""
    pairs = not text.isascii()
    if pairs:  # for Java a character outside the basic plane is two
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
        if longest[1] < 0:  # no rule
            place += 1
            continue
        rule = ends.index(longest)
        stop = spans[2 * rule + 2][1]
        word = RULES[rule][2](text[place:stop]).lower()
        if word and word not in DROPPED:
            words.append(word)
        place = stop
    return [word.replace("\ud800", "") for word in words] if pairs else words
