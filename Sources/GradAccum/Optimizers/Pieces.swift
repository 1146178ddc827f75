/// Arrays of different sizes cut into pieces for one parallel loop.
struct Pieces {
    /// A multiple of any unit that a rule works in, such as a block of quantised state.
    static let grain = 32768
    private let arrayCount: Int
    /// Of all arrays.
    let elementCount: Int
    private var entries: [(index: Int, start: Int, count: Int)] = []

    init(_ sizes: some Collection<Int>) {
        arrayCount = sizes.count
        elementCount = sizes.reduce(0, +)
        entries.reserveCapacity(arrayCount)
        for (index, size) in sizes.enumerated() {
            for start in stride(from: 0, to: size, by: Pieces.grain) {
                entries.append((index, start, min(Pieces.grain, size - start)))
            }
        }
    }

    var count: Int { entries.count }
    subscript(_ piece: Int) -> (index: Int, start: Int, count: Int) { entries[piece] }

    /// How many pieces in a row a thread takes, where there are many: memory is slow at first where a thread jumps to.
    private var stretch: Int { count >= 128 * Runtime.numThreads ? 8 : 1 }

    /// Runs `body` for all pieces, on all threads: (array, its first element, elements). It makes no array and no object: see
    /// ``Runtime/parallel(tiles:elements:stretch:_:)``.
    func forEach(_ body: (Int, Int, Int) throws(GAError) -> Void) throws(GAError) {
        try Runtime.parallel(tiles: count, elements: elementCount, stretch: stretch) { piece throws(GAError) in
            let (index, start, count) = entries[piece]
            try body(index, start, count)
        }
    }

    /// Per array, the sums of what `body` returns for its pieces, which runs on all threads: (array, elements of it).
    ///
    /// They are added in the order of the pieces, so that the number of threads changes no bit.
    func sums(_ body: (Int, Range<Int>) throws(GAError) -> SIMD2<Double>) throws(GAError) -> [SIMD2<Double>] {
        let terms = try collect(count, elements: elementCount, stretch: stretch) { piece throws(GAError) in
            let (index, start, count) = entries[piece]
            return try body(index, start..<(start + count))
        }
        var sums = [SIMD2<Double>](repeating: .zero, count: arrayCount)
        for (entry, term) in zip(entries, terms) { sums[entry.index] += term }
        return sums
    }
}

/// The results of `body` for the tiles `0 ..< tiles`, which have that many elements in all and run on all threads.
func collect(
    _ tiles: Int, elements: Int = .max, stretch: Int = 1, _ body: (Int) throws(GAError) -> SIMD2<Double>
) throws(GAError) -> [SIMD2<Double>] {
    var results = [SIMD2<Double>](repeating: .zero, count: tiles)
    try results.withUnsafeMutableBufferPointer { (results) throws(GAError) in
        let results = UnsafeMutableBufferPointer(rebasing: results[...])
        try Runtime.parallel(tiles: tiles, elements: elements, stretch: stretch) { tile throws(GAError) in
            results[tile] = try body(tile)
        }
    }
    return results
}

/// The sums of two counts per tile, which `body` adds to: those of tile t are at 2t.
func sumCounts(
    tiles: Int, _ body: (UnsafeMutablePointer<Int64>) throws(GAError) -> Void
) throws(GAError) -> (Int, Int) {
    var counts = [Int64](repeating: 0, count: 2 * max(tiles, 1))
    try counts.withUnsafeMutableBufferPointer { (counts) throws(GAError) in try body(counts.baseAddress!) }
    var sums = (0, 0)
    for tile in 0..<tiles {
        sums.0 += Int(counts[2 * tile])
        sums.1 += Int(counts[2 * tile + 1])
    }
    return sums
}
