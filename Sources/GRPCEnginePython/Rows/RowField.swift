internal import PythonInterop

/// How one field of a message is filled from a row.
final class RowField: Sendable {
  /// What the wire holds; the raw values are the names that a plan uses.
  enum Kind: String {
    case int32, int64, uint32, uint64, sint32, sint64, fixed32, fixed64, sfixed32, sfixed64
    case bool, double, float, string, bytes
    /// `google.protobuf.Timestamp` and `Duration`.
    case timestamp, duration
    /// Few different values, such as an enum's: what `encode` gave is kept by value.
    case lookup
    /// Always left to `encode`.
    case python
    /// Another message, of the same row.
    case message

    /// https://protobuf.dev/programming-guides/encoding/#structure
    var wireType: UInt64 {
      switch self {
      case .int32, .int64, .uint32, .uint64, .sint32, .sint64, .bool: 0
      case .fixed64, .sfixed64, .double: 1
      case .string, .bytes, .timestamp, .duration, .message, .lookup, .python: 2
      case .fixed32, .sfixed32, .float: 5
      }
    }
  }

  let kind: Kind
  let tag: UInt64
  /// The row's value; of a message, one that is None where there is no message.
  let column: Int
  /// Whether the wire tells a default value from none.
  let hasPresence: Bool
  /// Which of the message's oneofs the field belongs to.
  let oneof: Int?
  /// Turns a value that is not encoded as it is into one that is.
  let convert: PythonHandle?
  /// Whether `convert` comes first, also for values that could be encoded as they are.
  let convertsFirst: Bool
  /// Gives the field as bytes, tag included, or raises what the user sees.
  let encode: PythonHandle?
  /// `{value: bytes}` of what `encode` gave.
  let known: PythonHandle?
  let message: RowMessage?

  init(
    kind: Kind,
    number: Int,
    column: Int,
    hasPresence: Bool,
    oneof: Int?,
    convert: PythonHandle?,
    convertsFirst: Bool,
    encode: PythonHandle?,
    known: PythonHandle?,
    message: RowMessage?
  ) {
    self.kind = kind
    self.tag = UInt64(number) << 3 | kind.wireType
    self.column = column
    self.hasPresence = hasPresence
    self.oneof = oneof
    self.convert = convert
    self.convertsFirst = convertsFirst
    self.encode = encode
    self.known = known
    self.message = message
  }
}

/// How a message is made from a row: its fields, in the order in which they are written.
final class RowMessage: Sendable {
  let fields: [RowField]
  let oneofCount: Int
  /// Raises what the user sees when a oneof has two members; takes its index and both tags' numbers.
  let conflict: PythonHandle?

  init(fields: [RowField], oneofCount: Int, conflict: PythonHandle?) {
    self.fields = fields
    self.oneofCount = oneofCount
    self.conflict = conflict
  }

  /// The columns that a row must have.
  var columnCount: Int {
    self.fields.map { max($0.column + 1, $0.message?.columnCount ?? 0) }.max() ?? 0
  }
}
