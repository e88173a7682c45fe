"""Answers given lately, by id: the same request id again gets the same answer and no second row in the log."""

from collections import OrderedDict

from loopwright.records.errors import RequestConflict
from loopwright.records.predictions.record import Prediction


class Recent:
    """The newest `most` answers of one loop, with the request as it was asked."""

    def __init__(self, most: int = 65_536) -> None:
        self._most = most
        self._answers: OrderedDict[str, tuple[int, Prediction]] = OrderedDict()

    def find(self, id: str, asked: int) -> Prediction | None:
        """The answer that `id` got, if any. `asked` is a digest of the request; RequestConflict when it was another."""
        found = self._answers.get(id)
        if found is None:
            return None
        if found[0] != asked:
            raise RequestConflict(id)
        return found[1]

    def keep(self, answer: Prediction, asked: int) -> None:
        """Remember an answer; the oldest is forgotten when there are too many."""
        self._answers[answer.id] = (asked, answer)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def clear(self) -> None:
        """Forget all of them: they may not be in the log."""
        self._answers.clear()

    def __len__(self) -> int:
        return len(self._answers)
