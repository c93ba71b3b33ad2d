package import NIOCore

/// The client's end of a connection, below any protocol.
package protocol ByteConnection: AnyObject {
  /// Sends bytes, without waiting for anybody to read them. Dropped when the connection is gone.
  func write(_ bytes: ByteBuffer)

  /// Waits for bytes. What nobody reads stays in the kernel, so a client that does not call this
  /// is a peer that does not read.
  ///
  /// - Returns: `nil` when the server has closed the connection.
  /// - Throws: `TestTimeout`.
  func read(_ what: String) throws -> ByteBuffer?

  /// Closes in order.
  func close()
}
