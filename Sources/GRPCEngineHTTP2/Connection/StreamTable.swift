internal import NIOCore

/// The HTTP/2 side of one stream.
struct HTTP2Stream {
  /// What is to be sent, and waits.
  enum Item {
    case headers(HeaderList, isEnd: Bool)
    case data(OutgoingData)

    var isData: Bool { if case .data = self { true } else { false } }
    var isEnd: Bool { if case .headers(_, isEnd: true) = self { true } else { false } }

    var size: Int {
      switch self {
      case .headers(let list, _): list.size
      case .data(let data): data.readableBytes
      }
    }
  }

  /// 0 in a place that no stream has.
  var id: Int
  /// Bytes that may be sent; below 0 after the peer has taken some back (RFC 9113 section 6.9.2).
  var sendWindow: Int
  /// Bytes that may come.
  var receiveWindow: Int
  /// Bytes of DATA that are still to come by the request's content-length; `nil` where it has none.
  var contentLeft: Int?
  /// The peer has sent END_STREAM.
  var isRemoteEnded = false
  /// All that is to be sent has been given.
  var isEndGiven = false
  /// END_STREAM has left.
  var isLocalEnded = false
  var queue: [Item] = []
  /// Bytes that are in it.
  var waiting = 0
  /// Whether the stream is in one of the lists of those that have something to send.
  var isListed = false
}

/// The open streams of a connection, each in a place of its own.
struct StreamTable {
  private static let placesKept = 64

  private var streams: ContiguousArray<HTTP2Stream> = []
  private var free: [Int] = []
  private var places = StreamIndex()
  /// The stream that was asked for last; its next frame is often the next one.
  private var last: (id: Int, place: Int) = (0, 0)

  var count: Int { self.places.count }

  subscript(place: Int) -> HTTP2Stream {
    _read { yield self.streams[place] }
    _modify { yield &self.streams[place] }
  }

  /// Where a stream is; `nil` when it is not open.
  mutating func place(of id: Int) -> Int? {
    if self.last.id == id { return self.last.place }
    guard let place = self.places.place(of: id) else { return nil }
    self.last = (id, place)
    return place
  }

  /// Whether a place still is that stream's.
  func holds(_ key: StreamKey) -> Bool {
    key.place < self.streams.count && self.streams[key.place].id == key.id
  }

  mutating func insert(_ stream: HTTP2Stream) -> Int {
    let place: Int
    if let known = self.free.popLast() {
      place = known
      self.streams[place] = stream
    } else {
      place = self.streams.count
      self.streams.append(stream)
    }
    self.places.insert(stream.id, at: place)
    self.last = (stream.id, place)
    return place
  }

  mutating func remove(at place: Int) {
    self.places.remove(self.streams[place].id)
    self.last = (0, 0)
    if self.places.isEmpty, self.streams.count > Self.placesKept {
      self = StreamTable()
      return
    }
    self.streams[place] = HTTP2Stream(id: 0, sendWindow: 0, receiveWindow: 0)
    self.free.append(place)
  }

  /// The places of all open streams.
  var occupied: [Int] {
    var places: [Int] = []
    places.reserveCapacity(self.count)
    self.places.forEachPlace { places.append($0) }
    return places
  }
}

/// Streams that wait for their turn, in the order in which they came.
struct StreamQueue {
  /// A few that have ended are not worth looking for.
  private static let staleKept = 64

  private var keys = CircularBuffer<StreamKey>()

  var isEmpty: Bool { self.keys.isEmpty }
  var count: Int { self.keys.count }

  /// Adds a stream. Those that end stay until their turn comes; where they are many, they are taken out.
  mutating func append(_ key: StreamKey, among streams: StreamTable) {
    if self.keys.count > 2 * streams.count + Self.staleKept {
      self.keys.removeAll { !streams.holds($0) }
    }
    self.keys.append(key)
  }

  mutating func popFirst() -> StreamKey? { self.keys.popFirst() }
}
