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
"""What scenes are made of: five contexts, their classes of objects, and the words for them."""

# "transfer": another artist's drawings in front of other backgrounds, of which training shows nothing. "varied": training
# with a third artist's drawings besides, which the model that comes along is trained on. A split's place is
# part of its seed: new ones go to the end.
SPLITS = ("train", "test", "transfer", "varied")
TASKS = ("caption", "instruction", "existence", "layout", "numbers")
POPE_KINDS = ("random", "popular", "adversarial")

# context: its own classes, the frequent ones first
CONTEXTS = {
    context: tuple(names.split(", "))
    for context, names in {
        "kitchen": "cup, bowl, apple, knife, bottle, spoon, banana, pizza, cake, wine glass, orange, sandwich, "
        "carrot, donut, hot dog",
        "office": "laptop, book, keyboard, mouse, cell phone, pencil, printer, backpack, briefcase, camera",
        "street": "car, person, traffic light, bicycle, bus, truck, motorcycle, umbrella, stop sign, handbag, train, "
        "suitcase, skateboard, airplane, kite, sports ball",
        "safari": "elephant, giraffe, zebra, tree, lion, monkey, tiger, deer, camel, bird, cow, horse, sheep, bear",
        "living room": "couch, tv, chair, potted plant, cat, clock, vase, bed, dog, candle, teddy bear, guitar",
    }.items()
}
CLASSES = tuple(name for names in CONTEXTS.values() for name in names)

PLACES = {
    "kitchen": "a kitchen",
    "office": "an office",
    "street": "a street",
    "safari": "a safari park",
    "living room": "a living room",
}
# classes of other contexts that are now and then seen in a context
VISITORS = {
    "kitchen": ("person", "chair", "cat", "clock"),
    "office": ("cup", "person", "clock", "chair", "potted plant"),
    "street": ("dog", "backpack", "cell phone", "bird", "tree"),
    "safari": ("person", "camera", "truck", "car"),
    "living room": ("book", "person", "cup", "sports ball"),
}
PARTNERS = {
    "keyboard": "mouse",
    "mouse": "keyboard",
    "laptop": "mouse",
    "bowl": "spoon",
    "spoon": "bowl",
    "wine glass": "bottle",
    "car": "traffic light",
    "traffic light": "car",
    "bicycle": "person",
    "couch": "tv",
    "tv": "couch",
    "candle": "vase",
    "zebra": "giraffe",
    "giraffe": "tree",
}
NUMBERS = ("zero", "one", "two", "three", "four", "five")
OPPOSITES = {"left": "right", "right": "left", "above": "below", "below": "above"}
SIDES = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
