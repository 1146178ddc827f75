/// The axes along which two arrangements of the same elements are walked together.
///
/// Axes of one element are left out, and neighbours that lie alike on both sides are joined, so that the last axis is as
/// long as it can be.
struct PairedAxes {
    private struct Axis {
        var size = 1
        var stepA = 1
        var stepB = 1
    }

    /// As many as ``Shape/maxRank``, held inline: every operation makes one of these.
    private var axes = InlineArray<8, Axis>(repeating: Axis())
    private var count = 0

    init(_ shape: [Int], _ a: [Int], _ b: [Int]) {
        for axis in shape.indices where shape[axis] != 1 {
            // Where both stand still, every element is the same one: once is enough.
            if shape[axis] > 1 && a[axis] == 0 && b[axis] == 0 { continue }
            if count > 0, axes[count - 1].stepA == a[axis] * shape[axis],
                axes[count - 1].stepB == b[axis] * shape[axis]
            {
                axes[count - 1].size *= shape[axis]
                axes[count - 1].stepA = a[axis]
                axes[count - 1].stepB = b[axis]
            } else {
                axes[count] = Axis(size: shape[axis], stepA: a[axis], stepB: b[axis])
                count += 1
            }
        }
        // Of a single element: the axis that is there anyway.
        count = max(count, 1)
    }

    /// One axis of neighbours on both sides.
    init(neighbours size: Int) {
        axes[0].size = size
        count = 1
    }

    /// The last axis: its length, and the steps of the two sides along it.
    var rowSize: Int { axes[count - 1].size }
    var rowStepA: Int { axes[count - 1].stepA }
    var rowStepB: Int { axes[count - 1].stepB }
    var rowCount: Int {
        var rows = 1
        for axis in 0..<(count - 1) { rows *= axes[axis].size }
        return rows
    }

    /// Where a row starts on the two sides.
    func offsets(ofRow row: Int) -> (a: Int, b: Int) {
        var (rest, a, b) = (row, 0, 0)
        for axis in stride(from: count - 2, through: 0, by: -1) {
            let index = rest % axes[axis].size
            rest /= axes[axis].size
            a += index * axes[axis].stepA
            b += index * axes[axis].stepB
        }
        return (a, b)
    }
}
