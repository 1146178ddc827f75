/// Writes the bytes of a state: words of 8 bytes, little endian, so that they are the same on every machine.
struct StateWriter {
    /// Where they go; nil counts them.
    let target: UnsafeMutableRawPointer?
    private(set) var byteCount = 0

    init(_ target: UnsafeMutableRawPointer?) { self.target = target }

    mutating func put(_ word: UInt64) {
        target?.storeBytes(of: word.littleEndian, toByteOffset: byteCount, as: UInt64.self)
        byteCount += 8
    }

    mutating func put(_ count: Int) { put(UInt64(bitPattern: Int64(count))) }

    mutating func put(_ number: Double) { put(number.bitPattern) }

    mutating func put(_ flag: Bool) { put(flag ? 1 : 0) }

    /// Its length and its bytes.
    mutating func put(_ text: String) {
        var text = text
        put(text.utf8.count)
        text.withUTF8 { put($0.baseAddress, byteCount: $0.count) }
    }

    /// The number of axes and their lengths.
    mutating func put(_ shape: [Int]) {
        put(shape.count)
        for length in shape { put(length) }
    }

    /// Bytes, and zeros up to the next word.
    mutating func put(_ bytes: UnsafeRawPointer?, byteCount count: Int) {
        let padding = StateWriter.padding(count)
        if let target, let bytes {
            (target + byteCount).copyMemory(from: bytes, byteCount: count)
            (target + byteCount + count).initializeMemory(as: UInt8.self, repeating: 0, count: padding)
        }
        byteCount += count + padding
    }

    /// From the end of some bytes to the next word.
    static func padding(_ byteCount: Int) -> Int { -byteCount & 7 }
}

/// Reads what a ``StateWriter`` wrote, and trusts none of it.
struct StateReader {
    private let bytes: UnsafeRawBufferPointer
    private var offset = 0

    init(_ bytes: UnsafeRawBufferPointer) { self.bytes = bytes }

    /// Those of clocks: what a double tells apart, and far from the last number.
    private static let counts = 0...1 << 53

    mutating func word(_ what: @autoclosure () -> String) throws(GAError) -> UInt64 {
        UInt64(littleEndian: try raw(8, what()).loadUnaligned(as: UInt64.self))
    }

    /// A number that counts something.
    mutating func count(
        _ what: @autoclosure () -> String, in range: ClosedRange<Int> = counts
    ) throws(GAError) -> Int {
        let count = Int(Int64(bitPattern: try word(what())))
        guard range.contains(count) else {
            throw GAError(
                .invalidArgument,
                "load_state: state has \(count) as \(what()): it must be in \(range.lowerBound) ... "
                    + "\(range.upperBound)"
            )
        }
        return count
    }

    mutating func double(_ what: @autoclosure () -> String) throws(GAError) -> Double {
        Double(bitPattern: try word(what()))
    }

    /// A number that is finite and at least 0.
    mutating func amount(_ what: @autoclosure () -> String) throws(GAError) -> Double {
        let amount = try double(what())
        guard amount.isFinite && amount >= 0 else {
            throw GAError(
                .invalidArgument, "load_state: state has \(amount) as \(what()): it must be finite and at least 0")
        }
        return amount
    }

    mutating func flag(_ what: @autoclosure () -> String) throws(GAError) -> Bool {
        let word = try word(what())
        guard word <= 1 else {
            throw GAError(.invalidArgument, "load_state: state has \(word) as \(what()): it must be 0 or 1")
        }
        return word == 1
    }

    /// Errors: `invalidArgument` for another count than that of the optimizer.
    mutating func expect(_ expected: Int, _ what: @autoclosure () -> String) throws(GAError) {
        let count = Int(Int64(bitPattern: try word(what())))
        guard count == expected else {
            throw GAError(
                .invalidArgument,
                "load_state: state has \(count) as \(what()), and the optimizer \(expected): create it as the "
                    + "one that was saved")
        }
    }

    /// Errors: `invalidArgument` for another text.
    mutating func expect(_ expected: String, _ what: @autoclosure () -> String) throws(GAError) {
        let length = Int(Int64(bitPattern: try word(what())))
        // What a sentence can show.
        guard (0...64).contains(length) || length == expected.utf8.count else { throw isAnother(what(), "?", expected) }
        let text = try raw(length, what())
        try skipPadding(length, what())
        guard !text.elementsEqual(expected.utf8) else { return }
        let isPrintable = text.allSatisfy { (0x20...0x7e).contains($0) }
        throw isAnother(what(), isPrintable ? String(decoding: text, as: UTF8.self) : "?", expected)
    }

    private func isAnother(_ what: String, _ found: String, _ expected: String) -> GAError {
        GAError(
            .invalidArgument,
            "load_state: state has \"\(found)\" as \(what), and the optimizer \"\(expected)\": create it as the one "
                + "that was saved")
    }

    /// Errors: `shape` for another one.
    mutating func expect(_ expected: [Int], _ what: @autoclosure () -> String) throws(GAError) {
        let rank = try count("the number of axes of \(what())")
        var found: [Int] = []
        // No more of them than a sentence can show.
        for axis in 0..<min(rank, Shape.maxRank) { found.append(try count("axis \(axis) of \(what())")) }
        guard found == expected && rank == expected.count else {
            throw GAError(
                .shape,
                "load_state: state has shape \(found) for \(what()), and the optimizer \(expected): create it as "
                    + "the one that was saved")
        }
    }

    /// Bytes that end with a word.
    mutating func bytes(_ count: Int, _ what: @autoclosure () -> String) throws(GAError) -> UnsafeRawBufferPointer {
        let found = try raw(count, what())
        try skipPadding(count, what())
        return found
    }

    private mutating func skipPadding(_ count: Int, _ what: @autoclosure () -> String) throws(GAError) {
        guard try raw(StateWriter.padding(count), what()).allSatisfy({ $0 == 0 }) else {
            throw GAError(.invalidArgument, "load_state: state has other bytes than 0 after \(what()): it is damaged")
        }
    }

    private mutating func raw(_ count: Int, _ what: @autoclosure () -> String) throws(GAError) -> UnsafeRawBufferPointer
    {
        guard count >= 0 && count <= bytes.count - offset else {
            throw GAError(
                .invalidArgument, "load_state: state ends within \(what()), after \(bytes.count) bytes: it is damaged")
        }
        defer { offset += count }
        return UnsafeRawBufferPointer(rebasing: bytes[offset..<offset + count])
    }

    /// Errors: `invalidArgument` unless all was read.
    func expectEnd() throws(GAError) {
        guard offset == bytes.count else {
            throw GAError(
                .invalidArgument,
                "load_state: state goes on after its last slot, for \(bytes.count - offset) bytes: it is damaged")
        }
    }
}
