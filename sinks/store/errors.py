"""ClickHouse's errors: a number, a name, a sentence; and the HTTP status each travels with."""

import re

# The statuses a ClickHouse server sends; any other code is a 500.
_STATUS = {
    400: {6, 26, 27, 33, 36, 38, 41, 43, 53, 62, 70, 72, 117, 131, 299, 321, 322, 386, 457, 467, 636},
    401: {194},
    403: {164, 192, 193, 291, 358, 372, 452, 497, 516},
    404: {16, 46, 47, 50, 56, 60, 63, 65, 73, 81, 115, 141},
    408: {159},
    413: {230, 1_000_413},
    501: {48},
    503: {202, 236},
}
_STATUS_OF = {code: status for status, codes in _STATUS.items() for code in codes}
_SHAPE = re.compile(r"(?:Code: (\d+)\. DB::\w*Exception: )+(.*?)\s*$", re.DOTALL)
# Where we are in the engine's insides: call stacks, and the file it was given to read.
_INSIDE = re.compile(r"\n*^\d+\. .* @ 0x[0-9a-f]+$|: ?\(in file/uri /proc/self/fd/\d+\)", re.MULTILINE)
_TAIL = re.compile(r"(?:\.? ?\([A-Z_]+\)| ?\(version [^)]*\))+\.?$")

CANNOT_PARSE_TEXT = 6
BAD_ARGUMENTS = 36
NOT_IMPLEMENTED = 48
SYNTAX_ERROR = 62
READONLY = 164
UNKNOWN_SETTING = 115
TOO_MANY_SIMULTANEOUS_QUERIES = 202
QUERY_IS_TOO_LARGE = 230
ABORTED = 236
INTO_OUTFILE_NOT_ALLOWED = 358
QUERY_WITH_SAME_ID_IS_ALREADY_RUNNING = 216
SESSION_NOT_FOUND = 372
SESSION_IS_LOCKED = 373
INVALID_SESSION_TIMEOUT = 374
ACCESS_DENIED = 497
AUTHENTICATION_FAILED = 516
NOT_ENOUGH_SPACE = 243
UNKNOWN_EXCEPTION = 1002
CHECKSUM_DOESNT_MATCH = 40
TOO_LARGE_SIZE_COMPRESSED = 76
UNKNOWN_COMPRESSION_METHOD = 89
CANNOT_DECOMPRESS = 271
INCORRECT_DATA = 117

_NAMES = {value: name for name, value in list(globals().items()) if isinstance(value, int)}


class StoreError(Exception):
    """What a client is told; ``code`` is ClickHouse's number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code

    @property
    def status(self) -> int:
        """The HTTP status a ClickHouse server would use."""
        return _STATUS_OF.get(self.code, 500)

    def text(self, version: str) -> str:
        """The body of the answer, as a ClickHouse server words it."""
        message = str(self)
        if not re.search(r"\([A-Z_]+\)$", message):
            message = f"{message}. ({_NAMES.get(self.code, 'UNKNOWN_EXCEPTION')})"
        return f"Code: {self.code}. DB::Exception: {message} (version {version})\n"


def from_engine(error: BaseException) -> StoreError:
    """The engine raises RuntimeError with everything in its text; none when that would not be UTF-8."""
    text = _INSIDE.sub("", str(error))
    if not text:
        return StoreError(INCORRECT_DATA, "Cannot parse the data by its format and types")
    shape = _SHAPE.search(text)
    if not shape:
        return StoreError(UNKNOWN_EXCEPTION, text or type(error).__name__)
    message = _TAIL.sub("", shape[2])
    name = re.search(r"\([A-Z_]+\)", shape[2][len(message) :])
    return StoreError(int(shape[1]), f"{message}. {name[0]}" if name else message)
