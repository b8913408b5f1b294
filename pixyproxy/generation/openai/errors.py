"""Translates errors of OpenAI, of gateways in front of it, and of other servers with its API."""

from __future__ import annotations

import email.utils
import json
import re
import time
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pixyproxy.core.exceptions import (
    PromptRefusedError,
    ProviderError,
    ProviderMisconfiguredError,
    ProviderModelUnknownError,
    ProviderQuotaError,
    ProviderRateLimitedError,
    ProviderRequestInvalidError,
    ProviderTimeoutError,
    ProviderUnavailableError,
)
from pixyproxy.core.models import GenerationOptions

_MAX_RETRY_AFTER = 24 * 60 * 60.0
_MAX_MESSAGE = 2000  # characters of the provider's text that are read
_MAX_SHOWN = 300
_MAX_CATEGORIES = 32  # more are not said to callers; the database takes 64 KiB for an error
_SHARED_RUN = 16  # consecutive characters of the prompt that reveal it
_SHORT_WORD = 3

# Statuses which mean that no image was generated. With any other, one may have been: a gateway answers 408 if its
# upstream is slow, and 500 if the upstream's answer is incomplete.
_INVALID = frozenset({400, 413, 422})
_MISCONFIGURED = frozenset(
    {301, 302, 307, 308, 401, 403, 404, 405, 406, 407, 410, 411, 414, 415, 417, 421, 426, 428, 431, 451}
)
_REFUSALS = _INVALID | _MISCONFIGURED | {402, 429}
_TIMEOUTS = frozenset({408, 504, 524})

_MODERATION_CODES = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "contentfilter",
        "moderation_blocked",
        "responsibleaipolicyviolation",
    }
)
_QUOTA_CODES = frozenset(
    {
        "billing_hard_limit_reached",
        "credit_balance_exhausted",
        "insufficient_quota",
        "organization_usage_limit_exceeded",
    }
)
_QUOTA_SUFFIX = "_spend_limit_exceeded"
# Some gateways replace the code by the status, but keep the text.
_MODERATION_TEXT = re.compile(
    r"(?:by|of) (?:the|our) safety system|content[ _]?policy[ _]?violation|content management policy|moderation_blocked"
)
_QUOTA_TEXT = re.compile(r"exceeded your current quota|insufficient_quota|billing_hard_limit_reached")
_MODEL_TEXT = re.compile(r"invalid model name passed in model=")
_CATEGORIES = re.compile(r"safety_violations=\[([^\]]*)\]")
_FIELDS = {name: f"options.{name}" for name in GenerationOptions.model_fields} | {
    "prompt": "prompt",
    "image": "inputs",
    "mask": "mask",
}
# A text that names one of these is about it. The model is missing: LiteLLM names it in every text. So is the image.
_OPTIONS = frozenset(_FIELDS) - {"prompt", "model", "image"}

_SAFE_NAME = re.compile(r"[A-Za-z0-9_./-]{1,64}")
_WORD = re.compile(r"[A-Za-z0-9]+")
_NAME = re.compile(r"[a-z_]+")
_ESCAPE = re.compile(r"\\+(?:u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[nrt])|%[0-9a-fA-F]{2}|&#?\w{1,8};")
# Keys, addresses, paths, and words as long as a key.
_SECRET = re.compile(r"\b(?:sk|org|proj)[-_]\S*|\w+://\S+|(?<![\w.])/[\w.-]+/\S*|\b(?=\S*\d)[\w-]{24,}")
_HIDDEN = "***"


@dataclass(frozen=True)
class ErrorAnswer:
    """The content of an error answer.

    Attributes:
        codes: its code and type, in lower case.
        param: the parameter that it names, or "".
        message: its text, which may quote the prompt or a secret.
        moderation: its details of moderation.
    """

    codes: frozenset[str]
    param: str
    message: str
    moderation: Mapping[str, Any]

    @classmethod
    def of(cls, error: object) -> ErrorAnswer:
        """Read an error object, or whatever value the answer has in its place."""
        fields: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
        texts = [fields[name] for name in ("message", "detail", "error") if isinstance(fields.get(name), str)]
        moderation = fields.get("moderation_details")
        return cls(
            codes=frozenset(safe_name(fields.get(name)).lower() for name in ("code", "type")) - {""},
            param=safe_name(fields.get("param")),
            message=(texts[0] if texts else json.dumps(error) if error else "")[:_MAX_MESSAGE],
            moderation=moderation if isinstance(moderation, dict) else {},
        )

    def is_moderation(self, prompt: str) -> bool:
        """Return whether moderation refuses the prompt or the image."""
        return bool(self.codes & _MODERATION_CODES) or self._says(_MODERATION_TEXT, prompt)

    def is_quota(self, prompt: str) -> bool:
        """Return whether the account is out of money."""
        by_code = any(code in _QUOTA_CODES or code.endswith(_QUOTA_SUFFIX) for code in self.codes)
        return by_code or self._says(_QUOTA_TEXT, prompt)

    def is_unknown_model(self, prompt: str) -> bool:
        """Return whether the model does not exist."""
        return "model_not_found" in self.codes or self._says(_MODEL_TEXT, prompt)

    def _says(self, pattern: re.Pattern[str], prompt: str) -> bool:
        found = pattern.search(self.message.casefold())
        return found is not None and found[0] not in prompt.casefold()

    def for_log(self, prompt: str, api_key: str) -> str:
        """Return its content for the log, without words of the prompt and without possible secrets."""
        prompt = _plain(prompt).lower()
        words = set(_WORD.findall(prompt))

        def unless_of_prompt(found: re.Match[str]) -> str:
            word = found[0].lower()
            # The end of a longer word may be missing.
            return _HIDDEN if word in words or (len(word) > _SHORT_WORD and word in prompt) else found[0]

        text = _WORD.sub(unless_of_prompt, _plain(_SECRET.sub(_HIDDEN, self.message.replace(api_key, _HIDDEN))))
        text = re.sub(r"\*\*\*(?:\W*\*\*\*)+", _HIDDEN, text)[:_MAX_SHOWN]
        codes = " ".join(sorted(self.codes)) or "no code"
        return f"{codes}, param {self.param or 'none'}: {text or 'no message'}"

    def explain_moderation(self) -> PromptRefusedError:
        """Return the error for a refusal by moderation."""
        categories = self.moderation.get("categories")
        if not isinstance(categories, list):
            found = _CATEGORIES.search(self.message)
            categories = found[1].replace(" ", "").split(",") if found else []
        return PromptRefusedError(
            "The image provider's moderation refuses the prompt.",
            stage=safe_name(self.moderation.get("moderation_stage")),
            categories=[name for name in map(safe_name, categories) if name][:_MAX_CATEGORIES],
        )

    def explain_invalid(self, sent: Mapping[str, Any], api_key: str) -> ProviderRequestInvalidError:
        """Return the error for a refused parameter, with the provider's text if that is about an option."""
        field = _FIELDS.get(self.param or self._option_named(sent), "options")
        text = " ".join(self.message.split())
        # A text about the prompt, or about no particular parameter, could quote anything.
        if text and field not in {"prompt", "options"} and _may_be_shared(text, sent["prompt"], api_key):
            return ProviderRequestInvalidError(field, f"The image provider refuses it: {text[:_MAX_SHOWN]}")
        return ProviderRequestInvalidError(field, "The image provider refuses it.")

    def _option_named(self, sent: Mapping[str, Any]) -> str:
        """Return the sent option that the text names, or "" if it names none or several."""
        named = {*_OPTIONS, "prompt"} & set(_NAME.findall(self.message.lower()))
        return named.pop() if len(named) == 1 and named <= _OPTIONS & sent.keys() else ""


def explain_status(
    status: int,
    headers: Mapping[str, str],
    answer: ErrorAnswer,
    sent: Mapping[str, Any],
    api_key: str,
    *,
    is_openai: bool,
) -> ProviderError:
    """Return the error for an answer with an error status.

    Args:
        status: the HTTP status.
        headers: the headers.
        answer: the content.
        sent: the parameters of the request.
        api_key: the key, which must not be passed on.
        is_openai: whether it came from OpenAI itself, whose status 500 means that no image was generated.
    """
    prompt, retry_after = sent["prompt"], _retry_after(headers)
    if status in _REFUSALS and answer.is_moderation(prompt):
        return answer.explain_moderation()
    if status == 402 or (status in _REFUSALS and answer.is_quota(prompt)):
        return ProviderQuotaError("The image provider's account is out of money or over its spending limit.")
    if status == 429:
        return ProviderRateLimitedError("The image provider's rate limit is reached.", retry_after=retry_after)
    if status == 404 or (status in _INVALID and answer.is_unknown_model(prompt)):
        return ProviderModelUnknownError("The image provider does not have this model for the server's account.")
    if status in _INVALID:
        return answer.explain_invalid(sent, api_key)
    if status in {401, 403}:
        return ProviderMisconfiguredError("The image provider refuses the server's key, organisation or project.")
    if status in _MISCONFIGURED:
        return ProviderMisconfiguredError("The image provider's address does not take requests for images.")
    if status == 503 or (status == 500 and is_openai):
        return ProviderUnavailableError("The image provider has a problem of its own.", retry_after=retry_after)
    if status in _TIMEOUTS:
        return ProviderTimeoutError("The image provider took too long.", may_have_billed=True)
    return ProviderUnavailableError("The image provider has a problem of its own.", may_have_billed=True)


def safe_name(value: object) -> str:
    """Return a provider's identifier, or an empty string if the value is not one."""
    return value if isinstance(value, str) and _SAFE_NAME.fullmatch(value) else ""


def _plain(text: str) -> str:
    """Return a text in ASCII, on one line, and with a space for each escape, including nested ones."""
    text = unicodedata.normalize("NFKD", _ESCAPE.sub(" ", text)).encode("ascii", "ignore").decode()
    return re.sub(r"[^!-~]+", " ", text).strip()


def _may_be_shared(text: str, prompt: str, api_key: str) -> bool:
    """Return whether a text quotes no part of the prompt and no secret."""
    # An escape may encode a character of the prompt.
    if not text.isprintable() or api_key in text or _SECRET.search(text) or _ESCAPE.search(text):
        return False
    text, prompt = text.casefold(), " ".join(prompt.split()).casefold()
    runs = (text[start : start + _SHARED_RUN] for start in range(len(text) - _SHARED_RUN + 1))
    return prompt not in text and not any(run in prompt for run in runs)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait that the provider names, more than 0 and at most a day, or None."""
    seconds = _number(headers.get("retry-after-ms")) / 1000
    if not seconds > 0:
        seconds = _number(headers.get("retry-after"))
    if not seconds > 0:
        seconds = _seconds_until(headers.get("retry-after"))
    return seconds if 0 < seconds <= _MAX_RETRY_AFTER else None


def _number(text: str | None) -> float:
    return float(text) if text is not None and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text.strip()) else 0.0


def _seconds_until(http_date: str | None) -> float:
    try:
        date = email.utils.parsedate_tz(http_date)
        return email.utils.mktime_tz(date) - time.time() if date else 0.0
    except (ValueError, OverflowError):
        return 0.0
