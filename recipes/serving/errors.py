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
"""What a client is told when its request is not answered."""

import json


class RequestError(Exception):
    """
    A request that the client has to change (or, for 429 and 503, to repeat).

    Args:
        message (`str`): What is wrong and how to mend it.
        param (`str`, *optional*): The field that it is about, such as `messages[0].content`.
        code (`str`, *optional*): OpenAI's word for it, such as `context_length_exceeded`.
        status (`int`, *optional*, defaults to 400): The HTTP status.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.code, self.status = message, param, code, status

    @property
    def body(self) -> bytes:
        """OpenAI's error body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}).encode()
