# ruff: noqa: RUF001, SIM905 - ambiguous letters are what the texts are for; word lists read better as text
"""Write corpus.jsonl: 1,000 varied texts, one JSON object {"kind", "text"} a line.

Run from anywhere: ``python tests/data/make_corpus.py``. The same file comes out every time: a seeded
`random.Random.random` is the only source of chance. Texts by hand are in `BY_HAND`, `SCRIPTS` and their
neighbours; sentences of 3 to 60 words are built by a small grammar (English, if odd).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

COUNT = 1000
RNG = random.Random(20251121)

BY_HAND = """
a dog ate the food because it was hungry
The trophy did not fit into the suitcase because it was too large.
The trophy did not fit into the suitcase because it was too small.
The city councilmen refused the demonstrators a permit because they feared violence.
Time flies like an arrow; fruit flies like a banana.
That is a happy person.
That is a happy dog.
Today is a sunny day.
The weather is lovely today.
It's so sunny outside!
He drove to the stadium.
A man is eating a piece of bread.
A man is riding a white horse on an enclosed ground.
A woman is playing the violin in an empty hall.
Two men pushed carts through the woods.
A cheetah is running behind its prey.
How do I reset my password?
I forgot my login, who can help me get back into my account?
What's the capital of Australia? (Hint: it isn't Sydney.)
Canberra is the capital of Australia.
Who let the dogs out?
Buffalo buffalo Buffalo buffalo buffalo buffalo Buffalo buffalo.
The old man the boat.
The horse raced past the barn fell.
Colorless green ideas sleep furiously.
I'm, you're, he'd, we'll, they've, isn't, won't, shan't, 'twas, o'clock, rock 'n' roll.
She said, "He said, 'They said nothing.'"
"Quotes," he wrote, "belong to the one who quotes them."
Mr. Smith met Dr. Jones at 5 p.m. on Washington St. in St. Louis, Mo.
The U.S.A., the U.K. and the E.U. signed it; Ph.D.s applauded.
state-of-the-art, mother-in-law, twenty-one, re-entry, co-operate, e-mail
An em dash\u2014like this one\u2014and an en dash, pages 3\u20137, and a minus \u22125.
Ellipsis\u2026 and three dots... and four....
NEVER SHOUT IN ALL CAPITAL LETTERS!!!
iPhone, eBay, LaTeX, McDonald, O'Brien, van der Waals, d'Artagnan
naïve café résumé façade jalapeño Zürich Øresund Þórr smörgåsbord
Der schnelle braune Fuchs springt über den faulen Hund; Straße, Füße, ÄÖÜ.
Voix ambiguë d'un cœur qui, au zéphyr, préfère les jattes de kiwis.
El pingüino Wenceslao hizo kilómetros bajo exhaustiva lluvia y frío; ¿verdad? ¡Sí!
Pchnąć w tę łódź jeża lub ośm skrzyń fig.
Příliš žluťoučký kůň úpěl ďábelské ódy.
Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul, ISPARTA, ılık.
Quizdeltagerne spiste jordbær med fløde, mens cirkusklovnen Walther spillede på xylofon.
Flygande bäckasiner söka hwila på mjuka tuvor.
Árvíztűrő tükörfúrógép.
Muzicologă în bej vând whisky și tequila, preț fix.
The quick brown fox jumps over the lazy dog.
Sphinx of black quartz, judge my vow.
Pack my box with five dozen liquor jugs.
A cat is not a dog, but a dog is not a cat either, is it?
The cat sat on the mat.
The mat was sat on by the cat.
Nobody knows what nobody knows.
It was the best of afternoons and the worst of evenings, as afternoons and evenings go.
Water boils at one hundred degrees Celsius at sea level.
Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.
The mitochondrion makes most of the cell's chemical energy.
An electron has a negative charge; a proton, a positive one.
The derivative of a sum is the sum of the derivatives.
Interest rates were raised by a quarter of a percentage point on Wednesday.
Shares of the company fell 12.5% after it cut its forecast.
The court ruled, five to four, that the contract was void.
Preheat the oven to 180 degrees and butter a round tin.
Fold in the egg whites, a third at a time, without knocking out the air.
Turn left at the second traffic light, then straight on until the river.
The patient reports chest pain radiating to the left arm since this morning.
Take one tablet twice a day with food; do not drink alcohol.
Please find attached the minutes of our last meeting.
Dear Sir or Madam, I am writing to complain about the noise.
Best wishes, and see you on Monday!
lol idk tbh imo its gr8 :) ;-) XD <3 ^_^ ¯\\_(ツ)_/¯
omg!!!! sooooo goooood!!!1!
u r l8 again smh
@someone have you seen #thisthing yet? RT if you agree
Wait... what?!
Well, well, well.
Hm.
Yes
No!
ok
Why?
Thank you.
Good morning, good afternoon, good evening and good night.
To be, or not to be: so runs the question that every pupil learns.
The film's first hour is dull, its second is dreadful, and its ending redeems neither.
An absolute delight from start to finish; I laughed until I cried.
The hotel was clean, the staff were kind, and the breakfast was cold.
Five stars. Would buy again.
One star. It broke on the second day and nobody answers the phone.
the of and to a in that it is was i for on you he be with as by at
supercalifragilisticexpialidocious antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis
unbelievably uncharacteristically counterintuitively hyperparameterization tokenization detokenizer
[CLS] this text spells special tokens [SEP] as words [MASK] and [PAD] and [UNK]
##ing ##ed a text that begins with word pieces
<s>hello</s> <pad> <unk> <mask> <|endoftext|> <|im_start|>
a b c d e f g h i j k l m n o p q r s t u v w x y z
x
I
A
z
?
!
.
,
-
'
"
7
0
é
ß
I i İ ı
Ⅷ
½
™
""".strip("\n").split("\n")

SCRIPTS = {
    "cjk": """
你好，世界！
今天天气很好，我们去公园散步吧。
人工智能正在改变我们的生活方式。
狗吃了食物，因为它饿了。
請問最近的車站在哪裡？
他說：「我不知道。」
北京是中华人民共和国的首都，人口超过两千万。
中文English混合text没有空格
学而时习之，不亦说乎？有朋自远方来，不亦乐乎？
一二三四五六七八九十百千万亿
日本語の文章です。
吾輩は猫である。名前はまだ無い。
東京タワーは高さ333メートルです。
カタカナとひらがなと漢字が混ざっています。
半角ｶﾀｶﾅと全角ＡＢＣ１２３
「はい」と彼女は言った……。
ラーメンを食べたいけど、お金がない！
안녕하세요, 세계!
오늘은 날씨가 정말 좋네요.
개가 배가 고파서 음식을 먹었다.
한국어 문장에는 띄어쓰기가 있습니다.
서울특별시 강남구 테헤란로 123
ㅋㅋㅋㅋ ㅠㅠ
𠀀𠀁𠮷野家 (characters beyond the first plane)
龘龘龘 鱻 麤
㍿ ㌔ ㎏ ㈱ ①②③
〒100-0001 東京都千代田区千代田1−1
""",
    "right-to-left": """
مرحبا بالعالم!
أكل الكلب الطعام لأنه كان جائعا.
اللغة العربية لغة جميلة، أليس كذلك؟
السَّلامُ عَلَيْكُمْ وَرَحْمَةُ اللهِ
الرقم ٠١٢٣٤٥٦٧٨٩ والنسبة ٥٠٪
ﷺ ﷲ ﻻ
שלום עולם!
הכלב אכל את האוכל כי הוא היה רעב.
בְּרֵאשִׁית בָּרָא אֱלֹהִים
עברית and English בשורה אחת, 123 מספרים.
سلام دنیا، حال شما چطور است؟
می‌خواهم کتاب‌ها را بخوانم
یہ اردو کا ایک جملہ ہے۔
ܫܠܡܐ
\u202eright to left override\u202c and back
\u200fmark\u200e mark \u2067isolate\u2069
""",
    "script": """
Привет, мир! Собака съела еду, потому что была голодна.
Съешь же ещё этих мягких французских булок, да выпей чаю.
Ёлки-палки, объём подъезда
Щастя здоров'я ґанок їжак
Γειά σου Κόσμε! Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.
ΟΔΟΣ ὁδός ᾳ ῼ ΐ
नमस्ते दुनिया! कुत्ते ने खाना खाया क्योंकि वह भूखा था।
क्षत्रिय ज्ञान श्रद्धा
হ্যালো বিশ্ব, আজ আবহাওয়া ভালো।
வணக்கம் உலகம்
తెలుగు వాక్యం
ಕನ್ನಡ ವಾಕ್ಯ
മലയാളം വാക്യം
ਪੰਜਾਬੀ ਵਾਕ
ગુજરાતી વાક્ય
සිංහල වාක්‍යය
สวัสดีชาวโลก วันนี้อากาศดีมาก
ສະບາຍດີຊາວໂລກ
မင်္ဂလာပါ ကမ္ဘာလောက
សួស្តីពិភពលោក
བོད་ཡིག
გამარჯობა მსოფლიო
Բարեւ աշխարհ
ሰላም ልዑል
ᏣᎳᎩ ᎦᏬᏂᎯᏍᏗ
ᚠᛇᚻ᛫ᛒᛦᚦ
Xin chào thế giới! Tôi yêu tiếng Việt lắm.
Ọmọ Yorùbá ni mí
Ƙasa Ɓera ɗaki
ʻŌlelo Hawaiʻi
""",
    "emoji": """
😀
😀😃😄😁😆😅🤣😂
I love pizza 🍕 and coffee ☕!
👍👍🏻👍🏼👍🏽👍🏾👍🏿
👨‍👩‍👧‍👦 is one family, 👩🏽‍🚀 one astronaut
🇩🇪 🇫🇷 🇯🇵 🇧🇷
🏳️‍🌈 and 🏴󠁧󠁢󠁳󠁣󠁴󠁿
1️⃣2️⃣3️⃣ #️⃣ *️⃣
❤️ vs ❤ (with and without variation selector)
🎉🎊🥳 Happy birthday!!! 🎂🎈
dog🐶cat🐱mouse🐭
🤷‍♀️ who knows 🤷‍♂️
☀️🌤⛅🌥☁️🌦🌧⛈🌩🌨
♠♥♦♣ ♔♕♖♗♘♙ ♩♪♫♬
→ ← ↑ ↓ ⇒ ∀∃∈∉∑∏∫√∞≈≠≤≥
■□▲△●○★☆
🫠🫡🫥🪿🩷
text🙂with🙂no🙂spaces
""",
    "combining": """
e\u0301 and \u00e9 are the same letter
n\u0303 o\u0308 A\u030a c\u0327 s\u030c
a\u0300\u0301\u0302\u0303\u0304\u0305\u0306
Z\u0351\u036b\u0343\u0332a\u0335\u0341l\u0321\u0322g\u0334\u035bo\u0339\u0346!
\u0301starts with a combining mark
caf\u0065\u0301 nai\u0308ve
\u1112\u1161\u11ab\u1100\u1173\u11af (decomposed Hangul)
\u304b\u3099\u304d\u3099\u304f\u3099
\ufb01nancial o\ufb03ce \ufb02ag \ufb06
\uff26\uff55\uff4c\uff4c\u3000\uff57\uff49\uff44\uff54\uff48
\u212b \u00c5 A\u030a
\u1e9b\u0323 \u1e69
x\u0307\u0323 x\u0323\u0307
\u0130stanbul I\u0307stanbul
q\u0307\u0323\u0331w\u0302\u0317
\U0001d400\U0001d401\U0001d402 \U0001d49c\U0001d4b7 \U0001d7d8\U0001d7d9 mathematical letters
k\u20dd circled, 5\u20e3 key
""",
    "url": """
https://www.example.com/path/to/page?query=1&other=two#fragment
http://user:secret@example.org:8080/index.html
see example.com, www.example.net/a_b-c~d and ftp://ftp.example.org
mailto:someone@example.com?subject=Hello%20World
first.last+tag@sub-domain.example.co.uk
https://en.example.org/wiki/Caf%C3%A9_(disambiguation)
https://example.com/%E4%BD%A0%E5%A5%BD?x=%F0%9F%98%80
C:\\Users\\Public\\Documents\\report final (2).docx
/usr/local/lib/python3.11/site-packages/package/__init__.py
../../relative/./path//twice.txt
192.168.0.1 and 2001:0db8:85a3:0000:0000:8a2e:0370:7334 and ::1
doi:10.1000/xyz123 ISBN 978-3-16-148410-0
git@example.com:owner/repository.git
data:text/plain;base64,SGVsbG8sIFdvcmxkIQ==
s3://bucket/key/part-00000-of-00010.parquet
550e8400-e29b-41d4-a716-446655440000
d41d8cd98f00b204e9800998ecf8427e
""",
    "number": """
0 1 2 3 10 100 1000 10000 100000 1000000
3.14159265358979323846264338327950288
1,234,567.89 or 1.234.567,89 or 1 234 567,89
-273.15 +42 1e-9 6.022e23 0x1F 0b1010 1_000_000
2025-11-21T08:15:30.123+01:00
11/21/2025, 21.11.2025, Nov. 21st, '25
12:34:56 PM
$9.99 €19,95 £5 ¥1000 ₹500 ₿0.01
50% of 1/2 is 1/4; 33⅓ %
+1 (555) 010-9999
x² + y² = z², a₁ + a₂, 10⁻⁶
2 + 2 = 4, 3 × 5 = 15, 7 ÷ 2 = 3.5
MCMXCIV
99999999999999999999999999999999999999999999999999
1st 2nd 3rd 4th 21st 42nd 101st
5'11" 72°F −40°C 3.5 GHz 16GiB 10km/h
7/7/7 7-7-7 7.7.7 7:7:7
""",
}

CODE = [
    "def f(x):\n    return x ** 2 + 3 * x - 1\n",
    'for i in range(10):\n\tprint(f"{i:>3} {i * i}")',
    'fn main() { println!("{}", vec![1, 2, 3].iter().sum::<i32>()); }',
    '#include <stdio.h>\nint main(void) { printf("%d\\n", 42); return 0; }',
    "SELECT name, COUNT(*) AS n FROM users WHERE age >= 18 GROUP BY name ORDER BY n DESC;",
    "const f = async (x) => (await g(x))?.y ?? 'none';",
    '<div class="row"><a href="#top">Top &amp; more</a><!-- note --></div>',
    '{"key": [1, 2.5, true, null], "nested": {"a": "b\\n"}}',
    "if (a && b || !c) { d <<= 2; e ^= 0xFF; }",
    "grep -rn 'TODO' src/ | sort | uniq -c | head -n 5",
    "x = np.einsum('bhld,bhsd->bhls', q, k) / np.sqrt(d)",
    "template <typename T> auto max(T a, T b) -> T { return a > b ? a : b; }",
    "\\frac{\\partial L}{\\partial w} = \\sum_{i=1}^{n} x_i (\\hat{y}_i - y_i)",
    "import numpy as np; a = np.zeros((3, 4), dtype=np.float32)[::-1, ::2]",
    "^(?:[a-z0-9]+(?:[._-][a-z0-9]+)*)@example\\.(com|org)$",
    'let x: &\'static str = r#"raw "string""#;',
    "public static void main(String[] args) throws Exception { /* empty */ }",
    "docker run --rm -it -v $(pwd):/work -e KEY=value image:latest bash",
    "ERROR 2025-11-21 08:15:30,123 [thread-1] com.example.Main: NullPointerException at line 42",
    "camelCaseIdentifier snake_case_identifier SCREAMING_SNAKE kebab-case-identifier PascalCase",
    "a[i][j] += b[i][k]*c[k][j]; // i,j,k",
    "0x00 0xff 0xDEADBEEF 0o777 0b11 1e10 .5 5.",
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "# Title\n\n* one\n* two\n\n> quoted\n\n```\ncode\n```",
    "key: value\nlist:\n  - 1\n  - two\n",
]

ODD = [
    "",
    " ",
    "\t",
    "\n",
    "\r\n",
    "   \t\n  ",
    "\u00a0",
    "\u3000\u2003\u2009\u200a",
    "\u200b",
    "\ufeff",
    "\x00",
    "\x00\x01\x02\x03",
    "a\x00b",
    "bell\x07 backspace\x08 escape\x1b[31mred\x1b[0m delete\x7f",
    "line one\nline two\r\nline three\rline four\x0bline five\x0cline six",
    "tabs\tand\t\ttabs",
    "  leading and trailing  ",
    "many      spaces     between    words",
    "\n\n\nblank lines\n\n\naround\n\n\n",
    "no\u00a0break\u202fspaces and\u2028line\u2029separators\x85next line",
    "soft\u00adhyphen zero\u200bwidth\u200cjoiners\u200dand\u2060word joiner",
    "\ufeffbyte order mark in front",
    "replacement \ufffd character",
    "private use \ue000\uf8ff and \U000f0000",
    "not a character \ufffe \uffff",
    "\x1c\x1d\x1e\x1f separators \x1c between",
    "unassigned \u0378 and \U0003fffd",
    "tag \U000e0041\U000e0042 letters",
    "\u2800 blank braille \u3164 hangul filler",
    "C1 controls \x80\x9f\x9b0m end",
]

LONG_WORDS = [
    "a" * 10_000,
    "xy" * 5_000,
    ("pneumonoultramicroscopic" * 420)[:10_000],
    "before " + "z" * 10_000 + " after",
    "é" * 5_000,
    "漢" * 3_000,
    "." * 3_000,
    "a" * 99,
    "a" * 100,
    "a" * 101,
    "\U0001f600" * 1_000,
    "ab-" * 1_000,
    "1" * 5_000,
    "e\u0301" * 60,
]


def pick(items: Sequence[str]) -> str:
    """Choose one item."""
    return items[int(RNG.random() * len(items))]


def chance(p: float) -> bool:
    """Be true with probability p."""
    return RNG.random() < p


PEOPLE = (
    "teacher farmer pilot nurse lawyer child stranger poet baker sailor judge student painter neighbour "
    "doctor king engineer gardener librarian singer thief tailor widow astronaut barber"
).split()
ANIMALS = "dog cat horse owl spider whale fox goat parrot snail wolf beaver turtle bee donkey raven".split()
THINGS = (
    "letter bridge window clock lamp river mountain violin ladder newspaper engine garden table mirror "
    "candle tower umbrella suitcase kettle bicycle map coin telescope hammer blanket theory poem contract"
    " rumour promise"
).split()
PLACES = (
    "in the kitchen|at the station|on the roof|behind the old mill|near the harbour|under the "
    "bridge|beside the lake|in a crowded market|at the end of the street|inside the museum|far from "
    "home|above the clouds|between two hills|across the border|at the university|in Lisbon|on the night "
    "train to Prague"
).split("|")
TIMES = (
    "yesterday|last winter|on Tuesday|before dawn|after the concert|for three years|once a week|in "
    "1987|at half past nine|while nobody was looking|every morning|during the storm|until the lights went"
    " out|twice"
).split("|")
ADJECTIVES = (
    "old young tired green silent clever rusty enormous tiny famous broken golden lonely careful stubborn"
    " narrow cheerful expensive forgotten hungry invisible unusual patient transparent"
).split()
VERBS = (
    "found lost repaired painted watched remembered carried sold followed described measured hid bought "
    "praised ignored borrowed photographed counted admired dropped"
).split()
INTRANSITIVE = (
    "laughed|slept|waited|disappeared|fell silent|began to sing|ran away|changed colour|refused to "
    "move|grew quiet|came back|burst into tears|looked up|kept still"
).split("|")
SAYING = "said thought hoped believed knew claimed doubted wrote dreamed admitted".split()
ADVERBS = (
    "slowly suddenly carefully hardly quietly gladly almost often rarely finally eagerly politely".split()
)
LINKS = "because although while after before whenever unless until since whereas".split()


def noun() -> str:
    """Give a noun phrase without article: [adjective] noun."""
    word = pick([*PEOPLE, *ANIMALS, *THINGS])
    adjectives = [pick(ADJECTIVES) for _ in range(int(RNG.random() * 2.4))]
    return " ".join([", ".join(dict.fromkeys(adjectives)), word]).strip()


def article(phrase: str) -> str:
    """Put an article or the like before a noun phrase."""
    word = pick(["the", "the", "the", "a", "a", "this", "that", "my", "her", "every", "no", "some"])
    if word == "a" and phrase[0] in "aeiou" and not phrase.startswith(("uni", "one")):
        word = "an"
    return f"{word} {phrase}"


def noun_phrase(depth: int = 0) -> str:
    """Give a noun phrase, at times with a relative clause or a place."""
    phrase = article(noun())
    if depth < 2 and chance(0.2):
        phrase += f" that {noun_phrase(depth + 1)} {pick(VERBS)}" if chance(0.6) else f" {pick(PLACES)}"
    return phrase


def clause(depth: int = 0) -> str:
    """Give subject, verb and what belongs to it."""
    subject = noun_phrase(depth)
    adverb = f" {pick(ADVERBS)}" if chance(0.25) else ""
    if depth < 2 and chance(0.2):
        return f"{subject}{adverb} {pick(SAYING)} that {clause(depth + 1)}"
    body = pick(INTRANSITIVE) if chance(0.25) else f"{pick(VERBS)} {noun_phrase(depth)}"
    place = f" {pick(PLACES)}" if chance(0.35) else ""
    time = f" {pick(TIMES)}" if chance(0.3) else ""
    return f"{subject}{adverb} {body}{place}{time}"


def sentence(words: int) -> str:
    """Give a sentence of about that many words, 3 to 60."""
    if words <= 4:
        text = f"{article(pick([*PEOPLE, *ANIMALS]))} {pick(INTRANSITIVE)}"
    else:
        text = clause()
        while len(text.split()) < words:
            joint = pick([f", {pick(LINKS)}", f" {pick(LINKS)}", ", and", ", but", ";", " and then"])
            text += f"{joint} {clause(1)}"
    end = pick([".", ".", ".", ".", "!", "?", "", "..."])
    return text[0].upper() + text[1:] + end


def sentences(count: int) -> list[str]:
    """Give that many sentences, short ones more often than long ones, none twice and none above 60 words."""
    found: dict[str, None] = {}
    while len(found) < count:
        text = sentence(3 + int(54 * RNG.random() ** 2))
        if len(text.split()) <= 60:
            found[text] = None
    return list(found)


def paragraph(count: int) -> str:
    """Give several sentences; longer ones pass the 256 tokens of MiniLM."""
    return pick([" ", "  ", "\n"]).join(sentence(5 + int(20 * RNG.random())) for _ in range(count))


def corpus() -> list[tuple[str, str]]:
    """Give all texts with their kinds."""
    texts = [("hand", text.replace("\\\\", "\\")) for text in BY_HAND]
    for kind, block in SCRIPTS.items():
        texts += [(kind, line) for line in block.strip("\n").split("\n")]
    texts += [("code", text) for text in CODE]
    texts += [("odd", text) for text in ODD]
    texts += [("long word", text) for text in LONG_WORDS]
    texts += [("paragraph", paragraph(2 + i // 3)) for i in range(48)]
    everything = [text for kind, text in texts if kind not in ("odd", "long word", "paragraph")]
    texts += [("mixture", " ".join(pick(everything) for _ in range(2 + i % 4))) for i in range(40)]
    texts += [("sentence", text) for text in sentences(COUNT - len(texts))]
    unique = list(dict.fromkeys(text for _, text in texts))
    if len(texts) != COUNT or len(unique) != COUNT:
        message = f"{len(texts)} texts, {len(unique)} of them different"
        raise SystemExit(message)
    return texts


def line(kind: str, text: str) -> str:
    """Give a line of the file; what an editor would hide or break at is escaped."""
    hidden = any(c < " " or "\x7f" <= c <= "\xa0" or "\u2000" <= c <= "\u206f" for c in text)
    return json.dumps({"kind": kind, "text": text}, ensure_ascii=hidden or kind == "odd") + "\n"


if __name__ == "__main__":
    path = Path(__file__).with_name("corpus.jsonl")
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for kind, text in corpus():
            file.write(line(kind, text))
    print(path, path.stat().st_size)
