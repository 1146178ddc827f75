import CShims

/// Elements in memory of one format, read as words: 32 bits that hold one number or two.
protocol Elements {
    init(_ address: UnsafeRawPointer)
    /// The same memory, `elements` further.
    func advanced(by elements: Int) -> Self
    /// Begins to load elements that may be past the end.
    func prefetch(_ elements: Int)
    /// The given elements as numbers; lanes past their end hold 0.
    func floats(_ lanes: Lanes) -> Vector
    /// Sixteen pairs of bfloat16 from up to 32 elements that begin at `first` and end at `end`.
    func pairs(first: Int, end: Int) -> Vector
    /// Pairs of bfloat16 of the given elements with those of `next`, or with zeros.
    func pairs(_ lanes: Lanes, with next: Self?) -> Vector
}

struct F32Elements: Elements {
    let address: UnsafePointer<Float>

    @inline(always)
    init(_ address: UnsafeRawPointer) { self.address = address.assumingMemoryBound(to: Float.self) }

    @inline(always)
    func advanced(by elements: Int) -> F32Elements { F32Elements(UnsafeRawPointer(address + elements)) }

    @inline(always)
    func prefetch(_ elements: Int) {
        for line in 0..<(elements / 16) { shims_prefetch(address + 16 &* line) }
    }

    @inline(always)
    func floats(_ lanes: Lanes) -> Vector { load(address, lanes) }

    @inline(always)
    func pairs(first: Int, end: Int) -> Vector {
        let low = load(address, Lanes(first: first, end: max(end, first)))
        let high = load(address, Lanes(first: first &+ 16, end: max(end, first &+ 16)))
        #if BF16_DOT_PRODUCT
            return shims_round_pairs(low, high)
        #else
            let both = SIMD32<UInt32>(lowHalf: bf16Bits(low), highHalf: bf16Bits(high))
            return unsafeBitCast(both.evenHalf | both.oddHalf &<< 16, to: Vector.self)
        #endif
    }

    @inline(always)
    func pairs(_ lanes: Lanes, with next: F32Elements?) -> Vector {
        let first = load(address, lanes)
        let second = next.map { load($0.address, lanes) } ?? .zero
        #if BF16_DOT_PRODUCT
            let both = unsafeBitCast(shims_round_pairs(first, second), to: SIMD32<UInt16>.self)
            var pairs = SIMD32<UInt16>.zero
            pairs.evenHalf = both.lowHalf
            pairs.oddHalf = both.highHalf
            return unsafeBitCast(pairs, to: Vector.self)
        #else
            return unsafeBitCast(bf16Bits(first) | bf16Bits(second) &<< 16, to: Vector.self)
        #endif
    }
}

/// Elements of 16 bits.
protocol HalfElements: Elements {
    var address: UnsafePointer<UInt16> { get }
}

extension HalfElements {
    @inline(always)
    func advanced(by elements: Int) -> Self { Self(UnsafeRawPointer(address + elements)) }

    @inline(always)
    func prefetch(_ elements: Int) {
        for line in 0..<((elements &+ 31) / 32) { shims_prefetch(address + 32 &* line) }
    }
}

struct BF16Elements: HalfElements {
    let address: UnsafePointer<UInt16>

    @inline(always)
    init(_ address: UnsafeRawPointer) { self.address = address.assumingMemoryBound(to: UInt16.self) }

    @inline(always)
    func floats(_ lanes: Lanes) -> Vector { fromBF16(load(address, lanes)) }

    @inline(always)
    func pairs(first: Int, end: Int) -> Vector {
        let start = UnsafeRawPointer(address + first)
        if first &+ 32 <= end { return start.loadUnaligned(as: Vector.self) }
        var vector = Vector.zero
        withUnsafeMutableBytes(of: &vector) {
            $0.baseAddress.unsafelyUnwrapped.copyMemory(from: start, byteCount: max(0, end &- first) &* 2)
        }
        return vector
    }

    @inline(always)
    func pairs(_ lanes: Lanes, with next: BF16Elements?) -> Vector {
        let first = widened(load(address, lanes))
        guard let next else { return unsafeBitCast(first, to: Vector.self) }
        return unsafeBitCast(first | widened(load(next.address, lanes)) &<< 16, to: Vector.self)
    }
}

/// Elements of another format than bfloat16, one number each; pairs are made of their numbers.
protocol Numbers: Elements {}

extension Numbers {
    @inline(always)
    func pairs(first: Int, end: Int) -> Vector {
        let low = bf16Bits(floats(Lanes(first: first, end: max(end, first))))
        let high = bf16Bits(floats(Lanes(first: first &+ 16, end: max(end, first &+ 16))))
        let both = SIMD32<UInt32>(lowHalf: low, highHalf: high)
        return unsafeBitCast(both.evenHalf | both.oddHalf &<< 16, to: Vector.self)
    }

    @inline(always)
    func pairs(_ lanes: Lanes, with next: Self?) -> Vector {
        let second = next.map { bf16Bits($0.floats(lanes)) } ?? .zero
        return unsafeBitCast(bf16Bits(floats(lanes)) | second &<< 16, to: Vector.self)
    }
}

struct F16Elements: HalfElements, Numbers {
    let address: UnsafePointer<UInt16>

    @inline(always)
    init(_ address: UnsafeRawPointer) { self.address = address.assumingMemoryBound(to: UInt16.self) }

    @inline(always)
    func floats(_ lanes: Lanes) -> Vector { fromF16(load(address, lanes)) }
}

/// Elements of a wider range, as the nearest numbers of float16.
struct RoundedToF16<Source: Elements>: Numbers {
    let source: Source

    @inline(always)
    init(_ address: UnsafeRawPointer) { source = Source(address) }

    @inline(always)
    private init(_ source: Source) { self.source = source }

    @inline(always)
    func advanced(by elements: Int) -> RoundedToF16 { RoundedToF16(source.advanced(by: elements)) }

    @inline(always)
    func prefetch(_ elements: Int) { source.prefetch(elements) }

    @inline(always)
    func floats(_ lanes: Lanes) -> Vector { fromF16(toF16(source.floats(lanes))) }
}

/// What a product multiplies: words along k, the axis that it sums over.
protocol Words {
    /// Elements of k in a word.
    static var elements: Int { get }
    /// The format of which consecutive elements along k are words already.
    static var format: shims_format { get }
    /// `sum` plus the products of the elements of `a` and `b`, one rounding each.
    static func addProduct(_ a: Vector, _ b: Vector, to sum: Vector) -> Vector
    /// Sixteen words from elements that lie next to each other along k, from `first` to `end` at most.
    static func along<Source: Elements>(_ source: Source, first: Int, end: Int) -> Vector
    /// Sixteen words of elements that lie next to each other across k; `step` leads to the next element along k, of
    /// which there are `count`.
    static func across<Source: Elements>(_ source: Source, step: Int, count: Int, _ lanes: Lanes) -> Vector
}

/// A word is a float.
enum SingleWords: Words {
    @inline(always) static var elements: Int { 1 }
    @inline(always) static var format: shims_format { SHIMS_F32 }

    @inline(always)
    static func addProduct(_ a: Vector, _ b: Vector, to sum: Vector) -> Vector {
        multiplyAdd(a, b, sum)
    }

    @inline(always)
    static func along<Source: Elements>(_ source: Source, first: Int, end: Int) -> Vector {
        source.floats(Lanes(first: first, end: max(end, first)))
    }

    @inline(always)
    static func across<Source: Elements>(_ source: Source, step: Int, count: Int, _ lanes: Lanes) -> Vector {
        source.floats(lanes)
    }
}

/// A word is two numbers in bfloat16, the first along k in its lower half.
enum PairWords: Words {
    @inline(always) static var elements: Int { 2 }
    @inline(always) static var format: shims_format { SHIMS_BF16 }

    /// The second product first, as the instruction has it.
    @inline(always)
    static func addProduct(_ a: Vector, _ b: Vector, to sum: Vector) -> Vector {
        #if BF16_DOT_PRODUCT
            shims_add_dot_product(sum, a, b)
        #else
            multiplyAdd(low(a), low(b), multiplyAdd(high(a), high(b), sum))
        #endif
    }

    @inline(always)
    private static func low(_ word: Vector) -> Vector {
        unsafeBitCast(unsafeBitCast(word, to: Bits.self) &<< 16, to: Vector.self)
    }

    @inline(always)
    private static func high(_ word: Vector) -> Vector {
        unsafeBitCast(unsafeBitCast(word, to: Bits.self) & 0xffff_0000, to: Vector.self)
    }

    @inline(always)
    static func along<Source: Elements>(_ source: Source, first: Int, end: Int) -> Vector {
        source.pairs(first: 2 &* first, end: end)
    }

    @inline(always)
    static func across<Source: Elements>(_ source: Source, step: Int, count: Int, _ lanes: Lanes) -> Vector {
        source.pairs(lanes, with: count < 2 ? nil : source.advanced(by: step))
    }
}

/// A factor of a product, seen as lines of words along k: element (line, k) is at `address[line * line + k * k]`.
struct Factor {
    let address: UnsafeRawPointer
    let format: shims_format
    /// Steps between elements, one of which is 1: to the next line, and along k.
    let line, along: Int
    /// Whether words are floats that float16 can hold.
    let isRounded: Bool

    @inline(always)
    init(rows matrix: shims_matrix, _ arithmetic: shims_format) {
        self.init(
            matrix.address, matrix.format, line: Int(matrix.row), along: Int(matrix.column),
            isRounded: arithmetic.rawValue == SHIMS_F16.rawValue)
    }

    @inline(always)
    init(columns matrix: shims_matrix, _ arithmetic: shims_format) {
        self.init(
            matrix.address, matrix.format, line: Int(matrix.column), along: Int(matrix.row),
            isRounded: arithmetic.rawValue == SHIMS_F16.rawValue)
    }

    @inline(always)
    private init(_ address: UnsafeRawPointer, _ format: shims_format, line: Int, along: Int, isRounded: Bool) {
        (self.address, self.format, self.line, self.along) = (address, format, line, along)
        self.isRounded = isRounded
    }

    /// The lines from `first` on.
    @inline(always)
    func lines(from first: Int) -> Factor {
        Factor(
            address + first &* line &* (isF32 ? 4 : 2), format, line: line, along: along, isRounded: isRounded)
    }

    @inline(always)
    private var isF32: Bool { format.rawValue == SHIMS_F32.rawValue }
    @inline(always)
    private var isBF16: Bool { format.rawValue == SHIMS_BF16.rawValue }

    /// Whether a product reads its lines, of `count` elements, as they are.
    ///
    /// They are words next to each other, but for what is less than a word at the end; or they lie across and are so short
    /// that what a tile reads of memory mostly stays in the nearer caches.
    @inline(always)
    func isReadInPlace<W: Words>(as _: W.Type, count: Int) -> Bool {
        guard !isRounded && format.rawValue == W.format.rawValue else { return false }
        if along == 1 && line > 0 { return line % W.elements == 0 }
        return W.elements == 1 && line == 1 && count <= 64
    }

    /// Copies the elements `first ..< end` of `lines` lines as words into panels of `width` lines that follow each other, and
    /// of 16 where fewer are left: word (line, w) of a panel of p lines to `panel[w * p + line]`. The last vector of lines
    /// is filled up with zeros.
    @inline(always)
    func packPanels<W: Words>(
        _: W.Type, _ out: UnsafeMutablePointer<Float>, width: Int, lines: Int, first: Int, end: Int
    ) {
        if W.elements == 1 && isRounded && isF32 {
            packPanels(W.self, RoundedToF16<F32Elements>(address), out, width, lines, first, end)
        } else if W.elements == 1 && isRounded && isBF16 {
            packPanels(W.self, RoundedToF16<BF16Elements>(address), out, width, lines, first, end)
        } else if isF32 {
            packPanels(W.self, F32Elements(address), out, width, lines, first, end)
        } else if isBF16 {
            packPanels(W.self, BF16Elements(address), out, width, lines, first, end)
        } else {
            packPanels(W.self, F16Elements(address), out, width, lines, first, end)
        }
    }

    /// Copies the same with word (line, w) at `out[line * ld + w]`, where elements are consecutive along k.
    @inline(always)
    func packAlong<W: Words>(
        _: W.Type, _ out: UnsafeMutablePointer<Float>, _ ld: Int, lines: Int, first: Int, end: Int
    ) {
        if W.elements == 1 && isRounded && isF32 {
            packAlong(W.self, RoundedToF16<F32Elements>(address), out, ld, lines, first, end)
        } else if W.elements == 1 && isRounded && isBF16 {
            packAlong(W.self, RoundedToF16<BF16Elements>(address), out, ld, lines, first, end)
        } else if isF32 {
            packAlong(W.self, F32Elements(address), out, ld, lines, first, end)
        } else if isBF16 {
            packAlong(W.self, BF16Elements(address), out, ld, lines, first, end)
        } else {
            packAlong(W.self, F16Elements(address), out, ld, lines, first, end)
        }
    }

    @inline(never)
    private func packAlong<W: Words, Source: Elements>(
        _: W.Type, _ source: Source, _ out: UnsafeMutablePointer<Float>, _ ld: Int, _ lines: Int, _ first: Int,
        _ end: Int
    ) {
        let words = (end &- first &+ W.elements &- 1) / W.elements
        for line in 0..<lines {
            let start = source.advanced(by: line &* self.line &+ first)
            @inline(always)
            func copy(_ lanes: Lanes) {
                store(
                    W.along(start, first: lanes.first, end: end &- first), out + line &* ld, Lanes(first: lanes.first))
            }
            forEachLanes(to: words, copy)
        }
    }

    @inline(never)
    private func packPanels<W: Words, Source: Elements>(
        _: W.Type, _ source: Source, _ out: UnsafeMutablePointer<Float>, _ width: Int, _ lines: Int, _ first: Int,
        _ end: Int
    ) {
        let words = (end &- first &+ W.elements &- 1) / W.elements
        // Either way a few streams are read in the order of memory and one is written, as the caches of a CPU like it.
        if self.line == 1 {
            // Far enough ahead for memory to answer, however short the rows are.
            let ahead = min(max(8, 6144 / max(lines, 1)), 128)
            var block = 0
            while block < words {
                let blockEnd = min(words, block &+ 8)
                var line = 0
                while line < lines {
                    let panel = line &+ width <= lines ? width : 16
                    for word in block..<blockEnd {
                        let k = first &+ word &* W.elements
                        let start = source.advanced(by: k &* along)
                        for element in 0..<W.elements {
                            start.advanced(by: (ahead &* W.elements &+ element) &* along &+ line).prefetch(panel)
                        }
                        for vector in 0..<(panel / 16) {
                            let lanes = Lanes(first: line &+ 16 &* vector, end: lines)
                            store(
                                W.across(start, step: along, count: end &- k, lanes), out + (line &* words),
                                Lanes(first: word &* panel &+ 16 &* vector))
                        }
                    }
                    line &+= panel
                }
                block = blockEnd
            }
            return
        }
        var line = 0
        while line < lines {
            let panel = line &+ width <= lines ? width : 16
            for group in 0..<(panel / 16) {
                let from = line &+ 16 &* group
                transposeLines(
                    W.self, source.advanced(by: from &* self.line &+ first), count: min(16, lines &- from),
                    elements: end &- first, words, to: out + (line &* words &+ 16 &* group), panel)
            }
            line &+= panel
        }
    }

    /// Up to sixteen lines from `start`: word (line, w) to `out[w * ld + line]`.
    @inline(always)
    private func transposeLines<W: Words, Source: Elements>(
        _: W.Type, _ start: Source, count: Int, elements: Int, _ words: Int,
        to out: UnsafeMutablePointer<Float>, _ ld: Int
    ) {
        var word = 0
        while word < words {
            var rows = zeroRegisters()
            if count == 16 && (word &+ 16) &* W.elements <= elements {
                for row in 0..<16 {
                    let source = start.advanced(by: row &* line)
                    // Of the next lines, while these are turned.
                    source.advanced(by: 16 &* line &+ word &* W.elements).prefetch(16 &* W.elements)
                    rows[unchecked: row] = W.along(source, first: word, end: (word &+ 16) &* W.elements)
                }
                rows = transposed(rows)
                for w in 0..<16 { store(rows[unchecked: w], out + (word &+ w) &* ld, Lanes(first: 0)) }
            } else {
                for row in 0..<count {
                    rows[unchecked: row] = W.along(start.advanced(by: row &* line), first: word, end: elements)
                }
                rows = transposed(rows)
                for w in 0..<min(16, words &- word) {
                    store(rows[unchecked: w], out + (word &+ w) &* ld, Lanes(first: 0))
                }
            }
            word &+= 16
        }
    }
}

/// Transposes 16 x 16 words in registers: interleaving the upper and lower half turns the place of a word, row and column
/// written one after the other in binary, by one bit, and four turns swap them.
@inline(always)
private func transposed(_ words: Registers) -> Registers {
    var rows = words
    for _ in 0..<4 {
        var turned = zeroRegisters()
        for row in 0..<8 {
            var pair = SIMD32<Float>.zero
            pair.evenHalf = rows[unchecked: row]
            pair.oddHalf = rows[unchecked: row &+ 8]
            turned[unchecked: 2 &* row] = pair.lowHalf
            turned[unchecked: 2 &* row &+ 1] = pair.highHalf
        }
        rows = turned
    }
    return rows
}
