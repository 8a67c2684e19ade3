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
"""Processor of AGE-VLM: chat text with one placeholder per image, and the images."""

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import ImageInput, make_flat_list_of_images, make_nested_list_of_images
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin, Unpack
from transformers.tokenization_utils_base import TextInput
from transformers.utils import auto_docstring


# LLaMA-3's chat format without its system message (which inserts the date of the day). Images that come last in a
# message are moved to its front, for only the text after a placeholder sees the image. The generation markers make the
# labels: the assistant's words and its end of turn.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- set body = namespace(images='', text='', last='') %}
    {%- if message['content'] is string %}
        {%- set body.text = message['content'] | trim %}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {%- set body.images = body.images + '<|image|>' %}
            {%- else %}
                {%- set body.text = body.text + body.images + part['text'] %}
                {%- set body.images = '' %}
            {%- endif %}
        {%- endfor %}
        {%- set body.text = body.images + body.text | trim %}
    {%- endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}{{- body.text + '<|eot_id|>' }}{%- endgeneration %}
    {%- else %}
        {{- body.text + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


@auto_docstring
class AgeVlmProcessor(ProcessorMixin):
    _auto_class = "AutoProcessor"

    def __init__(self, image_processor, tokenizer, chat_template: str | None = None, image_token: str = "<|image|>"):
        r"""
        image_token (`str`, *optional*, defaults to `"<|image|>"`):
            The placeholder in the text, one per image. It has to be one token of the tokenizer.
        """
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        if self.image_token_id is None or self.image_token_id == tokenizer.unk_token_id:
            raise ValueError(
                f"The image placeholder {image_token!r} is not a token of the tokenizer. Add it as a special token, or "
                "pass the `image_token` that the tokenizer has."
            )
        if chat_template is None:
            chat_template = CHAT_TEMPLATE.replace("<|image|>", image_token)
        super().__init__(image_processor, tokenizer, chat_template=chat_template)

    @auto_docstring
    def __call__(
        self,
        images: ImageInput | None = None,
        text: TextInput | list[TextInput] | None = None,
        **kwargs: Unpack[ProcessingKwargs],
    ) -> BatchFeature:
        r"""
        Returns:
            [`BatchFeature`]: A [`BatchFeature`] with the following fields:

            - **input_ids** -- `(batch_size, sequence_length)`; an image is one placeholder token.
            - **attention_mask** -- `(batch_size, sequence_length)`, 0 on padding.
            - **pixel_values** -- `(batch_size, num_images, num_channels, height, width)`, when there are images; rows
              with fewer images end in zeros.
            - **pixel_attention_mask** -- `(batch_size, num_images, height, width)`, when the image processor pads.
        """
        return super().__call__(images=images, text=text, **kwargs)

    def prepare_inputs_layout(self, images: ImageInput | None = None, text=None, **kwargs):
        images, text, *rest = super().prepare_inputs_layout(images=images, text=text, **kwargs)
        if images is not None:
            images = self._images_per_row(images, text)
            if not any(images):  # a batch of text alone
                images = None
        return images, text, *rest

    def _images_per_row(self, images: ImageInput, text: list[str] | None) -> list[list[ImageInput]]:
        """Images as a list per row; a flat list of images is dealt out to the rows' placeholders in order."""
        nested = make_nested_list_of_images(images)
        if text is None or len(nested) == len(text):
            return nested
        flat = make_flat_list_of_images(images)
        counts = [row.count(self.image_token) for row in text]
        if sum(counts) != len(flat):
            raise ValueError(
                f"The total number of {self.image_token} tokens in the prompts should be the same as the number of "
                f"images, but there are {sum(counts)} tokens and {len(flat)} images. Pass one list of images per text."
            )
        images_left = iter(flat)
        return [[next(images_left) for _ in range(count)] for count in counts]

    def validate_inputs(self, images: ImageInput | None = None, text=None, **kwargs) -> None:
        if text is not None and images is not None:
            for row, (row_text, row_images) in enumerate(zip(text, images, strict=True)):
                num_placeholders = row_text.count(self.image_token)
                if num_placeholders != len(row_images):
                    raise ValueError(
                        f"Text {row} has {num_placeholders} image placeholders ({self.image_token}), but "
                        f"{len(row_images)} images. Put one placeholder per image into the text; "
                        "`apply_chat_template` does so for every image of a message."
                    )
        super().validate_inputs(images=images, text=text, **kwargs)

    def replace_image_token(self, image_inputs: BatchFeature, image_idx: int, **kwargs) -> str:
        return self.image_token  # cross-attention reads the image: the text keeps one token per image

    def post_process_image_text_to_text(
        self, generated_outputs, skip_special_tokens: bool = True, **kwargs
    ) -> list[str]:
        r"""
        Decodes what `generate` returns.

        Args:
            generated_outputs (`torch.Tensor` of shape `(batch_size, sequence_length)`):
                Token ids.
            skip_special_tokens (`bool`, *optional*, defaults to `True`):
                Whether to leave special tokens out of the text.

        Returns:
            `list[str]`: The decoded texts.
        """
        return self.tokenizer.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)


__all__ = ["AgeVlmProcessor"]
