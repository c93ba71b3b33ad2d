internal import NIOCore

/// Strings in the static Huffman code of RFC 7541 section 5.2.
enum Huffman {
  /// A step of the decoder: from a node of the code's tree, by four bits.
  private struct Step {
    var next: UInt8 = 0
    var symbol: UInt8 = 0
    var hasSymbol = false
    /// Four bits that lead nowhere: they complete the end-of-string symbol.
    var isFailure = false
  }

  /// The tree as a table: sixteen steps for each inner node, of which there are 256.
  private static let steps: [Step] = Self.makeSteps()
  /// Whether a string may end at a node: what led there from the root are at most seven bits, all ones.
  private static let mayEnd: [Bool] = Self.makeEnds()

  /// The inner nodes' children: an inner node, or below 0 a leaf, which is the bitwise complement.
  private static func makeTree() -> [(Int, Int)] {
    var nodes = [(0, 0)]
    for (symbol, (code, length)) in HuffmanCode.symbols.enumerated() {
      var node = 0
      for bit in stride(from: Int(length) - 1, through: 0, by: -1) {
        let isOne = code >> UInt32(bit) & 1 == 1
        if bit == 0 {
          if isOne { nodes[node].1 = ~symbol } else { nodes[node].0 = ~symbol }
          continue
        }
        let child = isOne ? nodes[node].1 : nodes[node].0
        if child > 0 {
          node = child
        } else {
          nodes.append((0, 0))
          let new = nodes.count - 1
          if isOne { nodes[node].1 = new } else { nodes[node].0 = new }
          node = new
        }
      }
    }
    return nodes
  }

  private static func makeSteps() -> [Step] {
    let tree = Self.makeTree()
    return tree.indices.flatMap { start in
      (0..<16).map { bits in
        var (step, node) = (Step(), start)
        for bit in stride(from: 3, through: 0, by: -1) {
          let child = bits >> bit & 1 == 1 ? tree[node].1 : tree[node].0
          if child >= 0 {
            node = child
          } else if ~child == HuffmanCode.endOfString {
            step.isFailure = true
          } else {
            // The shortest code has five bits: four complete one symbol at most.
            step.symbol = UInt8(truncatingIfNeeded: ~child)
            step.hasSymbol = true
            node = 0
          }
        }
        step.next = UInt8(truncatingIfNeeded: node)
        return step
      }
    }
  }

  private static func makeEnds() -> [Bool] {
    let tree = Self.makeTree()
    var (ends, node) = ([Bool](repeating: false, count: tree.count), 0)
    for _ in 0..<8 {
      ends[node] = true
      node = tree[node].1
    }
    return ends
  }

  /// Decodes a string behind what `output` has.
  static func decode(_ bytes: Span<UInt8>, into output: inout [UInt8]) throws(HPACKError) {
    let steps = Self.steps
    var (node, isFailure) = (0, false)
    for index in bytes.indices {
      let byte = Int(bytes[index])
      let high = steps[node << 4 | byte >> 4]
      if high.hasSymbol { output.append(high.symbol) }
      let low = steps[Int(high.next) << 4 | byte & 0xF]
      if low.hasSymbol { output.append(low.symbol) }
      isFailure = isFailure || high.isFailure || low.isFailure
      node = Int(low.next)
    }
    guard !isFailure, Self.mayEnd[node] else { throw .badHuffmanCode }
  }

  /// How many bytes a string takes.
  static func encodedLength(_ bytes: UnsafeBufferPointer<UInt8>) -> Int {
    var bits = 0
    for byte in bytes { bits += Int(HuffmanCode.symbols[Int(byte)].length) }
    return (bits + 7) / 8
  }

  static func encode(_ bytes: UnsafeBufferPointer<UInt8>, into output: inout ByteBuffer) {
    var (pending, count): (UInt64, UInt64) = (0, 0)
    for byte in bytes {
      let (code, length) = HuffmanCode.symbols[Int(byte)]
      pending = pending << UInt64(length) | UInt64(code)
      count += UInt64(length)
      while count >= 8 {
        count -= 8
        output.writeInteger(UInt8(truncatingIfNeeded: pending >> count))
      }
    }
    // Section 5.2: what is left of the last byte is filled with the first bits of the end, all ones.
    if count > 0 {
      let filled = pending << (8 - count) | 0xFF >> count
      output.writeInteger(UInt8(truncatingIfNeeded: filled))
    }
  }
}
