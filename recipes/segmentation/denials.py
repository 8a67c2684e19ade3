# Copyright 2026 The AGE-VLM authors. All rights reserved.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""
Questions for existence that are answered with no, in English.

A locator finds something for every text, also for one about what is not there: such a question and its answer are not for
it. The rule is exact rather than complete. It knows the question as it is asked of a whole picture ("Is there a dog in the
image?", "Are there any cups or plates?", "Does the photo show a bus?", "Can you see people there?", "Is a dog visible?"),
and a no that says nothing else of that thing. A no to "Is there a dog to the left of the car?", "Is there a brown dog?",
"Are there two dogs?" or "Are there both dogs and cats?" leaves open whether there is a dog.
"""

import re


Span = tuple[int, int]


def _one_of(words: str) -> str:
    return f"(?:{'|'.join(words.split())})"


# Names of two words: COCO's, and frequent ones of GQA. Of any others the first may be an attribute.
_PAIRS = (
    "traffic light|street light|fire hydrant|stop sign|street sign|traffic sign|parking meter|parking lot|sports ball|"
    "soccer ball|tennis ball|baseball bat|baseball glove|tennis racket|tennis court|wine glass|hot dog|potted plant|"
    "palm tree|dining table|coffee table|trash can|cell phone|teddy bear|hair drier|hair dryer|picture frame|"
    "light fixture|air conditioner|coffee maker|fire truck|police officer"
)
# What stands where a noun would, but names nothing or leaves open how many there are
_NO_NOUNS = _one_of(
    "a an any some the no not this that these those it he she they we you i me us him them his hers its her their theirs our "
    "ours my your yours both either neither all each every everything everyone everybody anything something nothing none "
    "one ones two three four five six seven eight nine ten more most less fewer few many much several enough lot lots "
    "plenty other others another second third only just even also too still yet here there left right missing"
)
_NOUN = rf"(?:(?:{_PAIRS})(?:e?s)?|(?!{_NO_NOUNS}\b)[a-z]+(?:-[a-z]+)*)\b"
_IMAGE = r"(?:the|this|that)\s+(?:given\s+|provided\s+|above\s+)?(?:image|picture|photo(?:graph)?|pic|scene)"
_PLACE = (
    rf"(?:\s+(?:{_one_of('anywhere visible present shown seen depicted pictured here there')}|in\s+view|"
    rf"(?:in|on|within)\s+{_IMAGE}))"
)
_BE = _one_of("is are was were")
_SEE = _one_of("see spot find notice detect observe identify")
_SHOW = _one_of("show contain have include depict feature display")


def _nouns(conjunctions: str) -> str:
    article = r"(?:(?:an?|any|some|the)\s+)?"
    return rf"{article}(?P<first>{_NOUN})(?:\s+(?:{conjunctions})\s+{article}(?P<second>{_NOUN}))?"


_ASKED = rf"(?:either\s+)?{_nouns('or')}"
# One can see "well", too: without an article, these have to be more than one.
_SEEN = r"(?=(?:either|an?|any|some|the)\s|[a-z-]*s\b|people\b|men\b|women\b|children\b)"
# Behind the question only how to answer it: "Answer the question using a single word or phrase."
_FORM = r"\s*(?:\?(?:\s*|[^?]*\b(?:answer|respond|response|reply|brief|briefly|short)\b[^?]*))?"
_QUESTIONS = [
    re.compile(rf"\s*{question}{_FORM}", re.IGNORECASE)
    for question in (
        rf"{_BE}\s+there\s+{_ASKED}{_PLACE}*",
        rf"(?:do|does|did)\s+{_IMAGE}\s+{_SHOW}\s+{_ASKED}{_PLACE}*",
        rf"(?:can|could|do|did)\s+(?:you|we|i)\s+{_SEE}\s+{_SEEN}{_ASKED}{_PLACE}*",
        rf"{_BE}\s+{_ASKED}{_PLACE}+",
    )
]
_SEES_NO = r"(?:i|you|we)\s+(?:can't|cannot|can\s+not|don't|do\s+not)"
_SHOWS_NO = rf"(?:it|{_IMAGE})\s+(?:doesn't|does\s+not)"
# "No.", "No, there isn't.", "No, it does not.", "No, I can't."
_NO = re.compile(
    rf"\s*no\b\W*(?:(?:there\s+{_BE}(?:n't|\s+not|\s+none)(?:\s+any)?|{_SHOWS_NO}|{_SEES_NO})[\s.!]*)?", re.IGNORECASE
)
# "No dogs.", "No, there is no dog in the image. It shows ...", "There aren't any dogs.", "No, I cannot see a dog."
_NO_SUCH_THING = re.compile(
    rf"\s*(?:no|(?:no\b\W+)?(?:there(?:'s|\s+{_BE})\s+(?:no|not)|there\s+{_BE}n't|{_SEES_NO}\s+{_SEE}|"
    rf"{_SHOWS_NO}\s+{_SHOW}))\s+{_nouns('or|nor|and')}{_PLACE}*(?P<more>\s*|\s*[.,;:!].*|\s+(?:but|only|just)\b.*)",
    re.IGNORECASE | re.DOTALL,
)
# How a noun ends, and its plural
_PLURALS = [("", ""), ("", "s"), ("", "es"), ("y", "ies"), ("f", "ves"), ("fe", "ves"), ("man", "men")]
_PLURALS += [("child", "children"), ("person", "people")]


def denied_things(question: str, answer: str) -> tuple[list[Span], list[Span]]:
    """
    Where the things stand that a question asks for and the answer denies: their nouns as `[start, end)` characters of the
    question, and of the answer as far as it repeats them. None of the question's if it is no such question or answer.
    """
    question, answer = (text.replace("\u2019", "'") for text in (question, answer))
    asked = next((found for pattern in _QUESTIONS if (found := pattern.fullmatch(question))), None)
    if asked is None:
        return [], []
    spans = _spans(asked)
    if _NO.fullmatch(answer):
        return spans, []
    told = _NO_SUCH_THING.fullmatch(answer)
    if told is None:
        return [], []
    things = [_forms(question[start:end]) for start, end in spans]
    repeated = [span for span in _spans(told) if any(_forms(answer[slice(*span)]) & forms for forms in things)]
    more = re.findall(rf"\bones?\b|\b{_NOUN}", told["more"], re.IGNORECASE)
    if len(repeated) < len(spans) or any(
        "one" in _forms(word) or any(_forms(word) & t for t in things) for word in more
    ):
        return [], []  # it speaks of something else, or takes something back: "no cups, only one"
    return spans, repeated


def _spans(found: re.Match) -> list[Span]:
    return [found.span(name) for name in ("first", "second") if found[name]]


def _forms(noun: str) -> set[str]:
    """A noun and what its plural may be: two nouns that share one are the same."""
    noun = noun.lower()
    return {noun.removesuffix(end) + plural for end, plural in _PLURALS if noun.endswith(end)}
