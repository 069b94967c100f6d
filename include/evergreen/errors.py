"""The one error tree.

EvergreenError
|-- SpecError            a source.yaml or model.yaml that cannot be built
|-- SettingsError        a connection or variable that is missing or wrong
|-- DataError            the data is at fault: a retry cannot help, so none is made
|   |-- DeliveryMissing      no file for a partition
|   |-- UnreadableDelivery   truncated, wrong encoding, not the format
|   |-- SchemaMismatch       missing, extra or misnamed columns
|   |-- PartitionStopped     too many bad rows, a row count far off, stale data
|   |-- NotEnoughData        nothing to train, score or compare on
|   |-- LeakDetected         a feature sees the future
|   `-- OutputInvalid        our own output broke its contract
|-- AccountingError      in != trusted + quarantined + duplicates: a bug of ours
|-- ChecksumMismatch     stored bytes are not the bytes that were recorded
|-- NotFound             an object, table, version or partition that is not there
|-- Refused              a rule forbids what was asked
`-- Unavailable          a dependency is down or silent: a retry may help
"""


class EvergreenError(Exception):
    """Base of every error the engine raises on purpose."""


class SpecError(EvergreenError):
    """A spec that cannot be built; names file, field, value and what would be right."""


class SettingsError(EvergreenError):
    """A connection or variable that is missing or wrong. Retried: Airflow without its database finds none either."""


class DataError(EvergreenError):
    """The data is at fault. Never retried."""


class DeliveryMissing(DataError):
    """No file was delivered for a partition."""


class UnreadableDelivery(DataError):
    """A delivered file cannot be read as its declared format."""


class SchemaMismatch(DataError):
    """A delivered file has missing, extra or misnamed columns."""


class PartitionStopped(DataError):
    """A batch-level expectation failed; nothing of the partition is published."""


class NotEnoughData(DataError):
    """Nothing, or too little, to train, score or compare on."""


class LeakDetected(DataError):
    """A feature changes when rows from after its as-of date are removed."""


class OutputInvalid(DataError):
    """Predictions broke their own contract; nothing was published."""


class AccountingError(EvergreenError):
    """Rows in differ from trusted + quarantined + duplicates."""


class ChecksumMismatch(EvergreenError):
    """Stored bytes are not the bytes that were recorded."""


class NotFound(EvergreenError):
    """An object, table, version or partition that is not there."""


class Refused(EvergreenError):
    """A rule forbids what was asked."""


class Unavailable(EvergreenError):
    """A dependency is down or silent; a retry may help."""
