import CShims
import GradAccum

/// The tensors made on a thread since it was opened.
final class Scope {
    private var tensors: [OpaquePointer] = []
    private var compactAt = 256
    private var handle: OpaquePointer?
    private let outer: Scope?

    private static let slot = Int32(SHIMS_SLOT_SCOPE)

    private init(inside outer: Scope?) { self.outer = outer }

    /// Adds a handle; those that were freed meanwhile are forgotten now and then, so that the list stays as long as needed.
    func add(_ tensor: OpaquePointer) {
        if tensors.count >= compactAt {
            tensors = tensors.filter { HandleTable.shared.find($0, .tensor) != nil }
            compactAt = max(256, 2 * tensors.count)
        }
        tensors.append(tensor)
    }

    /// The innermost open scope of this thread, which its thread slot does not own: its handle does.
    static var current: Scope? {
        shims_thread_slot(slot).map { Unmanaged<Scope>.fromOpaque($0).takeUnretainedValue() }
    }

    static func open() throws(GAError) -> OpaquePointer {
        let scope = Scope(inside: current)
        let handle = try HandleTable.shared.insert(scope, .scope)
        scope.handle = handle
        shims_set_thread_slot(slot, Unmanaged.passUnretained(scope).toOpaque())
        return handle
    }

    /// Closes a scope of this thread and those that were opened in it and left open.
    static func closeThrough(_ handle: OpaquePointer) {
        guard let scope = HandleTable.shared.find(handle, .scope) as? Scope else { return }
        while let inner = current {
            try? close(inner.handle, keeping: [])
            if inner === scope { return }
        }
    }

    /// Closes the innermost scope, handing the tensors of `kept` to the one around it.
    static func close(_ handle: OpaquePointer?, keeping kept: [OpaquePointer]) throws(GAError) {
        let scope: Scope = try borrow(handle, .scope, "scope")
        guard scope === current else {
            throw GAError(
                .state, "scope_close: scope is not the innermost open scope of this thread: close the inner ones first")
        }
        let keep = Set(kept)
        shims_set_thread_slot(slot, scope.outer.map { Unmanaged.passUnretained($0).toOpaque() })
        for tensor in scope.tensors {
            if keep.contains(tensor) {
                scope.outer?.add(tensor)
            } else {
                _ = HandleTable.shared.remove(tensor, .tensor)
            }
        }
        _ = HandleTable.shared.remove(handle!, .scope)
    }
}
