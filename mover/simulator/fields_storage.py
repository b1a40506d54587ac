"""The fields of SM, SR, PBD and VDI. See `fields` for how a line is read.

Source: the data model, xen-api ocaml/idl/datamodel*.ml; a test compares these tables with it.
"""

from __future__ import annotations

SM = """
ro   capabilities           string set
ro   configuration          (string -> string) map
ro   copyright              string
ro   driver_filename        string
ro   features               (string -> int) map
ro   name_description       string
ro   name_label             string
rw   other_config           (string -> string) map
ro   required_api_version   string
ro   required_cluster_stack string set
ro   type                   string
ro   uuid                   string
ro   vendor                 string
ro   version                string
"""

SR = """
ro   PBDs                 PBD ref set
ro   VDIs                 VDI ref set
ro   allowed_operations   enum storage_operations set
ro   blobs                (string -> blob ref) map
ro   clustered            bool
con  content_type         string
ro   current_operations   (string -> enum storage_operations) map
ro   introduced_by        DR_task ref
ro   is_tools_sr          bool
ro   local_cache_enabled  bool
con  name_description     string
con  name_label           string
rw   other_config         (string -> string) map
con  physical_size        int
ro   physical_utilisation int
ro   shared               bool
rw   sm_config            (string -> string) map
rw   tags                 string set
con  type                 string
ro   uuid                 string
ro   virtual_allocation   int
"""

PBD = """
con! SR                 SR ref
ro   currently_attached bool
con! device_config      (string -> string) map
con! host               host ref
rw   other_config       (string -> string) map
ro   uuid               string
"""

VDI = """
con! SR                   SR ref
ro   VBDs                 VBD ref set
ro   allow_caching        bool
ro   allowed_operations   enum vdi_operations set
ro   cbt_enabled          bool
ro   crash_dumps          crashdump ref set
ro   current_operations   (string -> enum vdi_operations) map
ro   is_a_snapshot        bool
ro   is_tools_iso         bool
ro   location             string
ro   managed              bool = true
ro   metadata_latest      bool
ro   metadata_of_pool     pool ref
ro   missing              bool
con  name_description     string
con  name_label           string
ro   on_boot              enum on_boot = persist
rw!  other_config         (string -> string) map
ro   parent               VDI ref
ro   physical_utilisation int
con! read_only            bool
con! sharable             bool
rw   sm_config            (string -> string) map
ro   snapshot_of          VDI ref
ro   snapshot_time        datetime
ro   snapshots            VDI ref set
ro   storage_lock         bool
rw   tags                 string set
con! type                 enum vdi_type = user
ro   uuid                 string
con! virtual_size         int
rw   xenstore_data        (string -> string) map
"""
