"""Text that storage is known to spoil."""

from __future__ import annotations

COMPOSED = "caf\u00e9"
DECOMPOSED = "cafe\u0301"

LINES = {
    "german": "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich, ẞ",
    "turkish": "Iğdır'da ılık İstanbul ışığı",
    "icelandic": "Ðað er þungur hnífur í vör við Ærøskøbing",
    "vietnamese": "Một con cáo đỏ dưới ánh trăng ở Hà Nội",
    "polish": "Zażółć gęślą jaźń",
    "greek": "Μια αλεπού στο φεγγαρόφωτο, Ὀδυσσεύς ᾳ ς",
    "russian": "Съешь ещё этих мягких французских булок",
    "armenian": "Աղվեսը ձյան մեջ և",
    "georgian": "მელა თოვლში",
    "hebrew": "שׁוּעָל בַּשֶּׁלֶג",
    "arabic": "ثَعْلَبٌ فِي الثَّلْج",
    "persian": "می‌خواهم یک روباه",
    "urdu": "برف میں لومڑی",
    "hindi": "बर्फ़ में लोमड़ी क्षत्रिय",
    "tamil": "பனியில் நரி",
    "malayalam": "മഞ്ഞിൽ കുറുക്കൻ",
    "sinhala": "ශ්‍රී ලංකාව",
    "thai": "สุนัขจิ้งจอกในหิมะ",
    "burmese": "နှင်းထဲက မြေခွေး",
    "khmer": "កញ្ជ្រោងក្នុងព្រិល",
    "amharic": "ቀበሮ በበረዶ",
    "chinese": "雪山日出，一只狐狸",
    "japanese": "雪の中のキツネ、ｶﾞｷﾞｸﾞ がぎぐ",
    "korean": "눈 속의 여우",
    "rare han": "𠮷野家の𩸽と𪚥",
    "gothic": "𐌲𐌿𐍄",
    "emoji": "🍎🍌🦊",
    "skin tones": "👍👍🏻👍🏿",
    "joined emoji": "👩‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 ❤️‍🔥",
    "flags": "🇩🇪🇯🇵🏴󠁧󠁢󠁳󠁣󠁴󠁿",
    "keycaps": "1️⃣ #️⃣ ☺ ☺️ ☺︎",
    "composed": COMPOSED,
    "decomposed": DECOMPOSED,
    "stacked marks": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢",
    "right to left override": "abc\u202efed\u202c\u2066ghi\u2069",
    "invisible": "zero\u200bwidth\u2060join\u200der\ufeff soft\u00adhyphen",
    "kinds of spaces": "a\u00a0b\u2003c\u3000d",
    "private use and last code points": "\ue000\uf8ff\U000fffff\U0010fffd\ufffd",
    "mathematical letters": "𝓯𝓸𝔁 𝟙𝟚𝟛 ﬁ ﬂ ½ ①",
    "spaces around": "  two before, two after  ",
    "one trailing space": "trailing ",
    "quotes": "'single' \"double\" `back` ''twice'' «guillemets» “curly”",
    "backslashes": "C:\\new\\table \\' \\\" \\\\ \\0 \\",
    "driver parameters": "%s %d %% %(guid)s %(tag_key)s %(created_at)s %(image_id)s %(x)s ? ?1 $1 {} {0}",
    "named parameters": ":guid :name :tag_key ::text @variable @@version",
    "injection": "'; DROP TABLE images; -- ",
    "comments": "/* comment */ /*! 50000 SELECT 1 */ # hash -- dashes",
    "like wildcards": "100% of_it [a-z] * ?",
    "delimiter": "DELIMITER // SELECT 1; // DELIMITER ;",
    "json": '["a", {"b": null}], \\u00e9 \\n',
    "markup": "<b>&amp;</b> <script>alert(1)</script> ${jndi:ldap://x}",
    "number": "0012e3",
    "null": "NULL",
}
"""Texts of one line, in many languages and with everything that has a meaning to some layer below."""

PROMPTS = LINES | {
    "several lines": "first\nsecond\r\nthird\rfourth\n\n\tindented",
    "delimiter lines": "a fox\nDELIMITER //\nSELECT 1 //\nDELIMITER ;\nin snow",
    "delimiter with an end": "delimiter $$\nin the snow; a fox;\n$$ delimiter ;",
    "statement lines": "a fox;\n-- in the\nSELECT 'snow';\n",
    "line separators": "one\u2028two\u2029three",
}
"""Texts of several lines, too."""
