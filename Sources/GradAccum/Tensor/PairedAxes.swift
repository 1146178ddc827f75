/// The axes along which two arrangements of the same elements are walked together.
///
/// Axes of one element are left out, and neighbours that lie alike on both sides are joined, so that the last axis is as
/// long as it can be.
struct PairedAxes {
    private var sizes: [Int] = []
    private var stridesA: [Int] = []
    private var stridesB: [Int] = []

    init(_ shape: [Int], _ a: [Int], _ b: [Int]) {
        for axis in shape.indices where shape[axis] != 1 {
            // Where both stand still, every element is the same one: once is enough.
            if shape[axis] > 1 && a[axis] == 0 && b[axis] == 0 { continue }
            if let last = sizes.indices.last, stridesA[last] == a[axis] * shape[axis],
                stridesB[last] == b[axis] * shape[axis]
            {
                sizes[last] *= shape[axis]
                stridesA[last] = a[axis]
                stridesB[last] = b[axis]
            } else {
                sizes.append(shape[axis])
                stridesA.append(a[axis])
                stridesB.append(b[axis])
            }
        }
        if sizes.isEmpty { (sizes, stridesA, stridesB) = ([1], [1], [1]) }
    }

    /// The last axis: its length, and the steps of the two sides along it.
    var rowSize: Int { sizes[sizes.count - 1] }
    var rowStepA: Int { stridesA[stridesA.count - 1] }
    var rowStepB: Int { stridesB[stridesB.count - 1] }
    var rowCount: Int { sizes.dropLast().reduce(1, *) }

    /// Where a row starts on the two sides.
    func offsets(ofRow row: Int) -> (a: Int, b: Int) {
        var (rest, a, b) = (row, 0, 0)
        for axis in stride(from: sizes.count - 2, through: 0, by: -1) {
            let index = rest % sizes[axis]
            rest /= sizes[axis]
            a += index * stridesA[axis]
            b += index * stridesB[axis]
        }
        return (a, b)
    }
}
