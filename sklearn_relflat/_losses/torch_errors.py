"""Errors of torch that are no fault of a model or a loss."""

import torch


def raise_out_of_memory(error: BaseException) -> None:
    """Raise an error again if torch found no memory.

    Callers catch that, and try a smaller batch: it must not be taken for another fault.

    Parameters
    ----------
    error : BaseException
        What torch raised; on a CPU that is a plain RuntimeError.

    Raises
    ------
    BaseException
        The error itself.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    ):
        raise error
