import CGradAccum
import GradAccum

@_cdecl("ga_split_by_count") @implementation
public func ga_split_by_count(
    _ boundaries: UnsafeMutablePointer<Int64>!, _ capacity: Int64, _ out_count: UnsafeMutablePointer<Int64>!,
    _ samples: Int64, _ micro_batches: Int64
) -> ga_status {
    guarded { () throws(GAError) in
        let split = try Split(samples: Int(samples), microBatches: Int(micro_batches))
        try write(split, to: boundaries, capacity, out_count)
    }
}

@_cdecl("ga_split_by_size") @implementation
public func ga_split_by_size(
    _ boundaries: UnsafeMutablePointer<Int64>!, _ capacity: Int64, _ out_count: UnsafeMutablePointer<Int64>!,
    _ samples: Int64, _ size: Int64
) -> ga_status {
    guarded { () throws(GAError) in
        try write(try Split(samples: Int(samples), size: Int(size)), to: boundaries, capacity, out_count)
    }
}

@_cdecl("ga_split_by_tokens") @implementation
public func ga_split_by_tokens(
    _ boundaries: UnsafeMutablePointer<Int64>!, _ capacity: Int64, _ out_count: UnsafeMutablePointer<Int64>!,
    _ lengths: UnsafePointer<Int64>!, _ samples: Int64, _ token_budget: Int64, _ padded: Int32
) -> ga_status {
    guarded { () throws(GAError) in
        let lengths = try array(lengths, samples, "lengths", countedBy: "samples")
        let isPadded = try flag(padded, "padded")
        // Twice, as what an array of any length would need may not be there.
        var count = 0
        try Split.forEachStart(lengths: lengths, tokenBudget: Int(token_budget), isPadded: isPadded) { _ in count += 1 }
        try write(count, samples: lengths.count, to: boundaries, capacity, out_count) { (boundaries) throws(GAError) in
            var index = 0
            try Split.forEachStart(lengths: lengths, tokenBudget: Int(token_budget), isPadded: isPadded) { start in
                boundaries[index] = Int64(start)
                index += 1
            }
        }
    }
}

private func write(
    _ split: Split, to boundaries: UnsafeMutablePointer<Int64>?, _ capacity: Int64,
    _ out: UnsafeMutablePointer<Int64>?
) throws(GAError) {
    try write(split.count, samples: split.samples, to: boundaries, capacity, out) { (boundaries) throws(GAError) in
        for (index, range) in split.enumerated() { boundaries[index] = Int64(range.lowerBound) }
    }
}

/// Writes the count, and the boundaries where the caller has room for them.
private func write(
    _ count: Int, samples: Int, to boundaries: UnsafeMutablePointer<Int64>?, _ capacity: Int64,
    _ out: UnsafeMutablePointer<Int64>?, starts: (UnsafeMutablePointer<Int64>) throws(GAError) -> Void
) throws(GAError) {
    let out = try required(out, "out_count")
    if let boundaries {
        guard capacity > count else {
            throw GAError(
                .invalidArgument,
                "capacity is \(capacity), but \(count) micro-batches have 1 more boundaries: ask for the count first")
        }
        try starts(boundaries)
        boundaries[count] = Int64(samples)
    }
    out.pointee = Int64(count)
}
