"""The gate's checks of the data: it judges nothing on a test that was learnt, and tells of data that looks different.

checks = [*leak_checks(validation, policy), *shift_checks(shift, settings.shift)]
"""

from collections.abc import Sequence

from ..data.shift import Question, Shift
from ..data.summary import ValidationSummary
from ..params import Policy, ShiftSettings
from .checks import Check


def leak_checks(validation: ValidationSummary, policy: Policy) -> list[Check]:
    """A hold where examples that judge may have been learnt: no number is worth anything then.

    Args:
        validation: of the data that the candidate was trained on.
        policy: that of the rule `leak` now. Where the validation found any, what it did with them counts: `reject` took
            them out of the training.
    """
    found = validation.rules.get("leak")
    if policy == "off":
        way_out = "`validate.rules.leak: reject` looks, and leaves such examples out of the training"
        return [Check("leak", "hold", f"leak: nobody has looked for test examples in the training set; {way_out}", 0)]
    if found is None or found.policy != "warn":
        return []
    text = (
        f"leak: {found.count:,} examples that were trained on, or chosen by, nearly are some of the test or validation "
        "set, so the candidate may only remember them; `validate.rules.leak: reject` leaves them out"
    )
    return [Check("leak", "hold", text, found.count, 0)]


def shows_shift(question: Question, settings: ShiftSettings) -> bool:
    """Whether it is large, and no work of chance."""
    limit = settings.max_psi if question.measure == "psi" else settings.max_auc
    return question.size > limit and question.p_value < settings.significance


def shift_checks(shift: Shift | None, settings: ShiftSettings) -> list[Check]:
    """What follows from a shift since the champion; None: there is no champion, or nobody wants to know."""
    if shift is None or settings.policy == "off":
        return []
    found = [question for question in shift.questions if shows_shift(question, settings)]
    if not found:
        said = " ".join(shift.remarks) or f"the {shift.num_new:,} new training examples look like the champion's"
        return [Check("shift", "pass", f"shift: {said}", 0, 0)]
    text = f"shift: training examples do not look like the champion's: {_in_words(found, settings)}"
    if settings.policy == "warn":
        return [Check("shift", "pass", f"{text}; it is only said, as `gate.shift.policy` wants it", len(found), 0)]
    return [Check("shift", settings.policy, text, len(found), 0)]


def _in_words(found: Sequence[Question], settings: ShiftSettings) -> str:
    def said(question: Question) -> str:
        if question.measure == "auc":
            what, limit = "features, which tell new examples from old ones", settings.max_auc
        else:
            what, limit = f"{question.name} of {question.of} examples", settings.max_psi
        return f"{what} ({question.measure.upper()} {question.size:.2f}, allowed {limit:.2f})"

    return ", ".join(map(said, found))
