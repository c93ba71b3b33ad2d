package import NIOCore

/// Has NIOHTTP2 take this server's SETTINGS for acknowledged from the peer's first frame on.
///
/// NIOHTTP2 allows a peer 100 streams and headers of 16 KiB until the peer has acknowledged what this
/// server announced, and ends the connection past that. RFC 9113 section 6.5.2 says no such thing: a
/// peer that has not yet read the announcement may open as many streams as it likes, and gRPC's
/// clients send their first calls without waiting. So NIOHTTP2 is given an acknowledgement behind the
/// peer's first SETTINGS, and does not see the one that comes. That is right for limits that are no
/// lower than those that every connection begins with.
///
/// NIOHTTP2 is also told that the peer takes frames of `FrameSplitter.told`, if that takes less:
/// the last value of a setting counts (section 6.5.3), so that is added to the peer's.
///
/// A value: bytes of the peer go in, and those for NIOHTTP2 come out.
package struct EarlySettings {
  /// The connection preface of a client (RFC 9113 section 3.4).
  private static let prefaceLength = 24
  private static let headerLength = 9
  private static let settingLength = 6
  private static let settingsType: UInt8 = 4
  private static let maxFrameSize: UInt16 = 5
  private static let acknowledgement: [UInt8] = [0, 0, 0, 4, 1, 0, 0, 0, 0]

  private enum Stage {
    case preface
    /// The peer's SETTINGS are passing.
    case greeting
    /// Given, and the peer's own not yet seen.
    case acknowledged
    case complete
  }

  private var stage = Stage.preface
  /// Bytes to pass before the next frame begins.
  private var passing = Self.prefaceLength
  /// What has come of a frame's header.
  private var header = ByteBuffer()
  /// What has come of the peer's first SETTINGS.
  private var greeting = ByteBuffer()
  /// The largest frame that the peer takes, if it has said so.
  package private(set) var peerMaxFrameSize: Int?

  package init() {}

  /// Whether everything passes from now on.
  package var isComplete: Bool { self.stage == .complete }

  package mutating func received(_ bytes: ByteBuffer) -> ByteBuffer {
    if self.isComplete { return bytes }
    var rest = bytes
    var passed = ByteBuffer()
    while !self.isComplete {
      let length = min(self.passing, rest.readableBytes)
      if let part = rest.readSlice(length: length) {
        passed.writeImmutableBuffer(part)
        if self.stage == .greeting { self.greeting.writeImmutableBuffer(part) }
      }
      self.passing -= length
      guard self.passing == 0 else { return passed }
      if self.stage == .greeting {
        self.addMaxFrameSize(&passed)
        passed.writeBytes(Self.acknowledgement)
        self.stage = .acknowledged
      }
      let missing = min(Self.headerLength - self.header.readableBytes, rest.readableBytes)
      if let part = rest.readSlice(length: missing) { self.header.writeImmutableBuffer(part) }
      guard self.header.readableBytes == Self.headerLength else { return passed }
      self.beginFrame(&passed)
    }
    passed.writeImmutableBuffer(rest)
    return passed
  }

  private mutating func beginFrame(_ passed: inout ByteBuffer) {
    defer { self.header.clear() }
    let isAcknowledgement = self.header.readableBytesView.elementsEqual(Self.acknowledgement)
    if self.stage == .acknowledged, isAcknowledgement {
      self.stage = .complete
      return
    }
    let word = self.header.getInteger(at: 0, as: UInt32.self) ?? 0
    let length = Int(word >> 8)
    self.passing = length
    if self.stage == .preface {
      // A peer that does not begin with its SETTINGS is NIOHTTP2's to refuse.
      let isGreeting = UInt8(truncatingIfNeeded: word) == Self.settingsType && !isAcknowledgement
      self.stage = isGreeting && length < FrameSplitter.least / 2 ? .greeting : .complete
      if self.stage == .greeting {
        self.header.setInteger(word + UInt32(Self.settingLength) << 8, at: 0)
      }
    }
    passed.writeImmutableBuffer(self.header)
  }

  private mutating func addMaxFrameSize(_ passed: inout ByteBuffer) {
    while let parameter = self.greeting.readInteger(as: UInt16.self),
      let value = self.greeting.readInteger(as: UInt32.self)
    {
      if parameter == Self.maxFrameSize { self.peerMaxFrameSize = Int(value) }
    }
    // What it may not be is NIOHTTP2's to refuse, too.
    let own = self.peerMaxFrameSize ?? FrameSplitter.least
    let isAllowed = (FrameSplitter.least..<1 << 24).contains(own)
    passed.writeInteger(Self.maxFrameSize)
    passed.writeInteger(UInt32(isAllowed ? max(own, FrameSplitter.told) : own))
  }
}

/// Sits below NIOHTTP2 until the peer has acknowledged this server's SETTINGS.
///
/// It also announces the limit of concurrent streams, which NIOHTTP2 must not know: past it, that
/// would end the connection where RFC 9113 section 5.1.2 asks for an error of the stream.
/// `ConnectionHandler` keeps the limit.
package final class EarlySettingsHandler: ChannelDuplexHandler, RemovableChannelHandler {
  package typealias InboundIn = ByteBuffer
  package typealias InboundOut = ByteBuffer
  package typealias OutboundIn = IOData
  package typealias OutboundOut = IOData

  private static let settingsStart = 9
  private static let settingLength = 6
  private static let maxConcurrentStreams: UInt16 = 3

  private var settings = EarlySettings()
  private let maxConcurrentStreams: Int
  private let writer: WriteCoalescer
  private var hasAnnounced = false

  /// - Parameter writer: the handler below, which is told how large frames may be.
  package init(maxConcurrentStreams: Int, writer: WriteCoalescer) {
    self.maxConcurrentStreams = maxConcurrentStreams
    self.writer = writer
  }

  package func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    let bytes = self.settings.received(self.unwrapInboundIn(data))
    if let size = self.settings.peerMaxFrameSize { self.writer.limitFrames(to: size) }
    if bytes.readableBytes > 0 { context.fireChannelRead(self.wrapInboundOut(bytes)) }
    if self.settings.isComplete {
      context.pipeline.syncOperations.removeHandler(self, promise: nil)
    }
  }

  package func write(
    context: ChannelHandlerContext,
    data: NIOAny,
    promise: EventLoopPromise<Void>?
  ) {
    guard !self.hasAnnounced, case .byteBuffer(var frame) = self.unwrapOutboundIn(data) else {
      context.write(data, promise: promise)
      return
    }
    // The first that NIOHTTP2 writes are its SETTINGS, in one buffer.
    self.hasAnnounced = true
    var index = frame.readerIndex + Self.settingsStart
    while let parameter = frame.getInteger(at: index, as: UInt16.self) {
      if parameter == Self.maxConcurrentStreams {
        frame.setInteger(UInt32(clamping: self.maxConcurrentStreams), at: index + 2)
      }
      index += Self.settingLength
    }
    context.write(self.wrapOutboundOut(.byteBuffer(frame)), promise: promise)
  }
}
