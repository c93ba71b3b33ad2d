package import NIOCore

// What is sent. Headers, messages and the end of an answer wait in their stream for the socket and for the
// peer's windows; everything else goes out at once.

extension HTTP2Connection {
  /// Bytes that wait for the socket past which answers have to wait: enough to keep it busy.
  private static let outputTarget = 128 * 1024
  /// The largest frame that is sent, whatever the peer takes: as much of one stream comes between the others'.
  private static let largestFrame = 128 * 1024

  // MARK: Streams

  /// Sends the headers of an answer.
  package mutating func sendHeaders(_ list: HeaderList, on key: StreamKey) {
    self.send(.headers(list, isEnd: false), on: key)
  }

  /// Sends DATA. `Progress.outputLeft` follows when all of the stream's has left.
  package mutating func sendData(_ data: OutgoingData, on key: StreamKey) {
    self.send(.data(data), on: key)
  }

  /// Ends an answer with trailers, or as nothing but those. `Progress.endLeft` or `Progress.closed` follows.
  package mutating func sendEnd(_ trailers: HeaderList, on key: StreamKey) {
    self.send(.headers(trailers, isEnd: true), on: key)
  }

  /// Ends a stream at once, and drops what it has to send. Ignored when it is gone.
  package mutating func reset(_ key: StreamKey, _ code: HTTP2ErrorCode) {
    guard self.streams.holds(key) else { return }
    self.streams.remove(at: key.place)
    self.writeReset(key.id, code)
  }

  private mutating func send(_ item: HTTP2Stream.Item, on key: StreamKey) {
    guard self.streams.holds(key), !self.streams[key.place].isEndGiven else { return }
    if item.isEnd { self.streams[key.place].isEndGiven = true }
    var item = item
    guard self.streams[key.place].queue.isEmpty else {
      self.streams[key.place].waiting += item.size
      self.streams[key.place].queue.append(item)
      return
    }
    // Who waits for the connection's window is not overtaken.
    let wait = item.isData && !self.starved.isEmpty ? .connectionWindow : self.write(&item, on: key)
    if let wait {
      self.streams[key.place].waiting = item.size
      self.streams[key.place].queue.append(item)
      self.wait(key, wait)
    } else {
      self.written(key, isTold: item.isData)
    }
  }

  /// What has become of what was sent: the next of all that has not been told.
  package mutating func nextProgress() -> Progress? { self.progress.popFirst() }

  // MARK: The turn of each stream

  private var mayWrite: Bool { self.isWritable && self.output.count < Self.outputTarget }

  /// Whether something of a stream waits for the socket or for the peer's windows.
  package func isWaiting(_ key: StreamKey) -> Bool {
    self.streams.holds(key) && !self.streams[key.place].queue.isEmpty
  }

  /// How many bytes that is.
  package func waitingBytes(_ key: StreamKey) -> Int {
    self.streams.holds(key) ? self.streams[key.place].waiting : 0
  }

  /// Whether a stream could send more if the socket took it.
  package var hasReadyStreams: Bool {
    !self.ready.isEmpty || self.sendWindow > 0 && !self.starved.isEmpty
  }

  /// A stream may have something to send now.
  mutating func list(_ place: Int) {
    let stream = self.streams[place]
    guard !stream.isListed, !stream.queue.isEmpty else { return }
    self.streams[place].isListed = true
    self.ready.append(StreamKey(id: stream.id, place: place), among: self.streams)
  }

  /// Lets the streams that wait send what they can, in turns.
  package mutating func sendWaiting() {
    while self.mayWrite {
      if self.sendWindow > 0, let key = self.starved.popFirst() {
        self.resume(key)
      } else if let key = self.ready.popFirst() {
        self.resume(key)
      } else {
        return
      }
    }
  }

  private mutating func resume(_ key: StreamKey) {
    guard self.streams.holds(key), self.streams[key.place].isListed else { return }
    self.streams[key.place].isListed = false
    self.advance(key)
  }

  private enum Wait {
    /// Until the peer opens the stream's window.
    case window
    case connectionWindow
    case socket
  }

  /// Sends what a stream has, as far as that is possible now.
  private mutating func advance(_ key: StreamKey) {
    var index = 0
    var left = 0
    var queue: [HTTP2Stream.Item] = []
    swap(&queue, &self.streams[key.place].queue)
    while index < queue.count {
      let size = queue[index].size
      if let wait = self.write(&queue[index], on: key) {
        left += size - queue[index].size
        queue.removeFirst(index)
        swap(&queue, &self.streams[key.place].queue)
        self.streams[key.place].waiting -= left
        if left > 0 { self.progress.append(.partLeft(key)) }
        return self.wait(key, wait)
      }
      left += size
      index += 1
    }
    self.streams[key.place].waiting = 0
    self.written(key, isTold: true)
  }

  /// - Returns: what the rest of the item waits for; `nil` when all of it has left.
  private mutating func write(_ item: inout HTTP2Stream.Item, on key: StreamKey) -> Wait? {
    guard self.mayWrite else { return .socket }
    switch item {
    case .headers(let list, let isEnd):
      self.writeHeaders(list, on: key.id, isEnd: isEnd)
      if isEnd { self.streams[key.place].isLocalEnded = true }
      return nil
    case .data(var data):
      // Whatever leaves is not to be kept here as well.
      item = .data(OutgoingData(capacity: 0))
      let wait = self.writeData(&data, on: key)
      if wait != nil { item = .data(data) }
      return wait
    }
  }

  /// All that a stream had to send has left.
  private mutating func written(_ key: StreamKey, isTold: Bool) {
    if !self.streams[key.place].isLocalEnded {
      if isTold { self.progress.append(.outputLeft(key)) }
    } else if self.streams[key.place].isRemoteEnded {
      self.close(key.place)
    } else {
      self.progress.append(.endLeft(key))
    }
  }

  private mutating func wait(_ key: StreamKey, _ wait: Wait) {
    switch wait {
    case .window: return
    case .connectionWindow: self.starved.append(key, among: self.streams)
    case .socket: self.ready.append(key, among: self.streams)
    }
    self.streams[key.place].isListed = true
  }

  /// - Returns: what the rest waits for; `nil` when there is none.
  private mutating func writeData(_ data: inout OutgoingData, on key: StreamKey) -> Wait? {
    let largest = min(self.peerMaxFrameSize, Self.largestFrame)
    while data.readableBytes > 0 {
      let window = self.streams[key.place].sendWindow
      guard window > 0 else { return .window }
      guard self.sendWindow > 0 else { return .connectionWindow }
      guard self.mayWrite else { return .socket }
      let length = min(data.readableBytes, window, self.sendWindow, largest)
      self.output.write(FrameHeader(length: length, type: FrameType.data, stream: key.id))
      var left = length
      while left > 0, let part = data.readPart(atMost: left) {
        self.output.write(part)
        left -= part.readableBytes
      }
      self.sentFrames += 1
      self.sendWindow -= length
      self.streams[key.place].sendWindow -= length
    }
    return nil
  }

  private mutating func writeHeaders(_ list: HeaderList, on id: Int, isEnd: Bool) {
    self.sentFrames += 1
    let flags = isEnd ? FrameFlag.endStream : 0
    self.output.writeFrame(
      FrameHeader(length: 0, type: FrameType.headers, flags: flags, stream: id),
      maximumLength: self.peerMaxFrameSize,
      list,
      &self.encoder
    )
  }

  // MARK: The connection

  mutating func writeReset(_ id: Int, _ code: HTTP2ErrorCode) {
    self.output.write(FrameHeader(length: 4, type: FrameType.reset, stream: id))
    self.output.write { $0.writeInteger(code.rawValue) }
  }

  mutating func writePing(_ data: UInt64, isAnswer: Bool) {
    let flags = isAnswer ? FrameFlag.acknowledgement : 0
    self.output.write(FrameHeader(length: 8, type: FrameType.ping, flags: flags, stream: 0))
    self.output.write { $0.writeInteger(data) }
  }

  package mutating func sendPing(_ data: UInt64) { self.writePing(data, isAnswer: false) }

  /// Lets the peer send more on a stream; ignored when that is gone.
  package mutating func openWindow(_ key: StreamKey, by increment: Int) {
    guard self.streams.holds(key) else { return }
    self.streams[key.place].receiveWindow += increment
    self.writeWindowUpdate(key.id, increment)
  }

  /// Lets the peer send more on the connection.
  package mutating func openWindow(by increment: Int) {
    self.receiveWindow += increment
    self.writeWindowUpdate(0, increment)
  }

  private mutating func writeWindowUpdate(_ id: Int, _ increment: Int) {
    self.sentFrames += 1
    self.output.write(FrameHeader(length: 4, type: FrameType.windowUpdate, stream: id))
    self.output.write { $0.writeInteger(UInt32(clamping: increment)) }
  }

  /// The first GOAWAY of a drain, which warns: calls that are under way are still served (section 6.8).
  package mutating func sendGoAwayWarning() {
    self.writeGoAway(self.announcedLast, .noError, "")
  }

  /// Says that streams behind those that have come are not served.
  package mutating func sendGoAway(_ code: HTTP2ErrorCode, _ reason: String = "") {
    self.announcedLast = min(self.announcedLast, self.lastStream)
    self.writeGoAway(self.announcedLast, code, reason)
  }

  private mutating func writeGoAway(_ last: Int, _ code: HTTP2ErrorCode, _ reason: String) {
    let length = 8 + reason.utf8.count
    self.output.write(FrameHeader(length: length, type: FrameType.goAway, stream: 0))
    self.output.write { buffer in
      buffer.writeMultipleIntegers(UInt32(clamping: last), code.rawValue)
      buffer.writeString(reason)
    }
  }

  // MARK: Bytes out

  /// Bytes that are to be written.
  package var outputCount: Int { self.output.count }
  package var hasOutput: Bool { self.output.count > 0 }

  /// Gives the bytes that are to be written: large pieces, then the last one.
  package mutating func takeOutput() -> (pieces: [ByteBuffer], last: ByteBuffer?) {
    self.output.take()
  }
}
