/// Arrays of different sizes cut into pieces for one parallel loop.
struct Pieces {
    /// A multiple of any unit that a rule works in, such as a block of quantised state.
    static let grain = 32768
    private var entries: [(index: Int, start: Int, count: Int)] = []

    init(_ sizes: [Int]) {
        for (index, size) in sizes.enumerated() {
            for start in stride(from: 0, to: size, by: Pieces.grain) {
                entries.append((index, start, min(Pieces.grain, size - start)))
            }
        }
    }

    var count: Int { entries.count }
    subscript(_ piece: Int) -> (index: Int, start: Int, count: Int) { entries[piece] }
}
