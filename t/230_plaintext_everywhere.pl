# A key's plaintext is in nothing that the server writes or shows: logs, dumps, WAL,
# files, statistics, shared memory. Its digest is in its table and the index on that,
# and nowhere else. All this with the most talkative settings.
#
# Documented exceptions, which nothing here does: a key as a literal is part of its
# statement's text; one bound in text format is kept for the context of messages while
# log_parameter_max_length_on_error is not 0; a key or digest handed to a parameter
# of another type (text, bytea) is shown like any value of that type; debug_print_plan
# and its like print a digest among the constants of a plan; a superuser whose own
# UPDATE or INSERT violates a constraint of the table is shown the row, digest and all.

use strict;
use warnings;
no warnings 'portable';    # of hex() beyond 32 bits
use lib 't/lib';
use Digest::SHA qw(sha256);
use File::Find;
use IPC::Run ();
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use RegPilot::Wire;
use Test::More;

my $site = RegPilot::Test->new(
	responder => 0,
	streaming => 'logical',
	conf => <<~CONF);
		shared_preload_libraries = 'regpilot,auto_explain,pg_stat_statements'
		logging_collector = on
		log_destination = 'stderr,csvlog,jsonlog'
		log_filename = 'server.log'
		log_truncate_on_rotation = off
		log_min_messages = debug2
		log_statement = all
		log_min_duration_statement = 0
		log_parameter_max_length = -1
		log_parameter_max_length_on_error = -1
		log_error_verbosity = verbose
		log_connections = on
		log_lock_waits = on
		log_replication_commands = on
		log_temp_files = 0
		deadlock_timeout = 100ms
		auto_explain.log_min_duration = 0
		auto_explain.log_analyze = on
		auto_explain.log_buffers = on
		auto_explain.log_verbose = on
		auto_explain.log_settings = on
		auto_explain.log_triggers = on
		auto_explain.log_nested_statements = on
		pg_stat_statements.track = all
		pg_stat_statements.track_utility = on
		track_functions = all
		track_activity_query_size = 64kB
		max_prepared_transactions = 5
		wal_keep_size = 1GB
		CONF
my $node = $site->node;
my $data = $node->data_dir;
if ($node->pg_version >= 16)
{
	$node->append_conf('postgresql.conf', 'auto_explain.log_parameter_max_length = -1');
	$node->reload;
}
$site->sql('CREATE EXTENSION pg_stat_statements');
$site->sql(q{SELECT pg_create_logical_replication_slot('slot', 'test_decoding')});
$site->sql('CREATE ROLE manager LOGIN IN ROLE regpilot_admin');

my $responder = RegPilot::Wire->new($node, 'regpilot', 'regpilot_gateway');
my $manager = RegPilot::Wire->new($node, 'regpilot', 'manager');
my $owner = RegPilot::Wire->new($node, 'regpilot');

my (%id, %key);
my $told = '';    # the errors that clients got
my $views = '';    # and all that they could see in views

sub random_characters { return join '', map { (0 .. 9, 'a' .. 'z')[ rand 36 ] } 1 .. $_[0] }

# Looks like a key, and is the name of a project: the search must find it.
my $control = 'sk_control_' . random_characters(32);

# --- keys are made, and their owner sees them

my $project = $manager->call('SELECT regpilot.create_project($1, $2)', $control, 'enterprise')->{rows}[0][0];

sub make
{
	my ($name, $call, @parameters) = @_;
	my $answer = $manager->call("SELECT key_id, key FROM regpilot.$call", @parameters);
	($id{$name}, $key{$name}) = @{ $answer->{rows}[0] // [] };
	like($key{$name}, qr/^sk_([a-z]+_)?[0-9a-z]{32}$/, "$name: the client sees the key") or diag($answer->{error}{M});
}

make('plain', 'create_key($1, $2)', $project, 'plain');
make('prod', 'create_key($1, $2, $3)', $project, 'prod', 'prod');
make('limited', 'create_key($1, $2, requests_per_minute => 1)', $project, 'limited');
make($_, 'create_key($1, $2)', $project, $_) foreach qw(first second revoked disabled deleted text_bound in_function);
make('rotated', 'rotate_key($1)', $id{prod});

$key{imported} = 'sk_' . random_characters(32);
$id{imported} = $manager->call('SELECT regpilot.import_key($1, $2, $3::regpilot.secret::bytea)',
	$project, 'imported', binary($key{imported}))->{rows}[0][0];
ok($id{imported}, 'a key is imported');
my $again = $manager->call('SELECT regpilot.import_key($1, $2, $3::regpilot.secret::bytea)',
	$project, 'again', binary($key{imported}));
is($again->{error}{C}, '23505', 'once');

$key{unknown} = 'sk_prod_' . random_characters(32);
$key{junk} = random_characters(3000);

# --- requests

sub verdict
{
	my ($wire, $key) = @_;
	my $answer = $wire->call('SELECT verdict FROM regpilot.authorize($1)', $key);
	return $answer->{rows}[0][0] // $answer->{error}{C};
}

$manager->call('SELECT regpilot.revoke_key($1, $2)', $id{revoked}, 'test');
$manager->call('SELECT regpilot.disable_key($1)', $id{disabled});
my %verdict = (revoked => 'revoked', disabled => 'inactive', unknown => 'invalid', junk => 'invalid');
is(verdict($responder, binary($key{$_})), $verdict{$_} // 'ok', "$_: bound in binary") foreach sort keys %key;
is(verdict($responder, binary($key{limited})), 'rate_limited', 'and beyond its limit');

my @names = sort keys %key;
my $secrets = pack('N3 N2', 1, 0, $site->sql(q{SELECT 'regpilot.secret'::regtype::oid}), scalar @names, 1)
  . join '', map { pack 'N/a*', $key{$_} } @names;
sub array { return '{' . join(',', @_) . '}' }
my $many = $responder->call('SELECT * FROM regpilot.authorize_many($1, $2, $3, $4)',
	array(1 .. @names), binary($secrets), array(map { 'gateway:write' } @names), array(map { 'prod' } @names));
is(scalar @{ $many->{rows} }, scalar @names, 'many at once') or diag($many->{error}{M});
is($responder->call(<<~'SQL', array($id{plain}))->{rows}[0][0], 1, 'an outcome is recorded');
	SELECT regpilot.record_many($1, '{other}', '{500}', '{1}', '{m}', '{1}', '{1}')
	SQL

# In text format, while there is no message to give the context of
is(verdict($responder, $key{text_bound}), 'ok', 'bound as text');
is($responder->call('SELECT key_id FROM regpilot.authorize($1) WHERE $2 = 1', $key{text_bound}, 1)->{rows}[0][0],
	$id{text_bound}, 'and again');

# --- errors, with keys in the parameters of what fails

sub fails
{
	my ($wire, $state, $what, $statement, @parameters) = @_;
	my $error = $wire->call($statement, @parameters)->{error} // {};
	is($error->{C}, $state, $what) or diag($error->{M});
	$told .= join "\n", values %$error;
}

my $key = binary($key{first});
fails($owner, '22012', 'an error beside a verdict', 'SELECT (regpilot.authorize($1)).verdict, 1 / $2::int', $key, 0);
$owner->call('BEGIN');
is(verdict($owner, $key), 'ok', 'a verdict in a transaction');
fails($owner, '22012', 'an error in it', 'SELECT 1 / $2::int FROM regpilot.authorize($1)', $key, 0);
fails($owner, '25P02', 'and what comes after', 'SELECT regpilot.authorize($1)', $key);
$owner->call('ROLLBACK');
fails($owner, '42846', 'a cast that is not there', 'SELECT $1::regpilot.secret::int', $key);
fails($owner, '22P02', 'a cast that fails', 'SELECT $1::regpilot.secret::text::int', $key);
fails($owner, '22P02', 'another', 'SELECT $1::regpilot.secret::text::regpilot.verdict', $key);
fails($owner, '42883', 'a function that is not there', 'SELECT regpilot.authorise($1::regpilot.secret)', $key);
fails($owner, '42883', 'an operator that is not there', 'SELECT $1::regpilot.secret < $1::regpilot.secret', $key);
fails($owner, '2202E', 'arrays that differ', 'SELECT * FROM regpilot.authorize_many($1, $2, $3, $4)',
	array(1), binary($secrets), array('gateway:write'), array('prod'));
fails($owner, '22P03', 'an array that is broken', 'SELECT * FROM regpilot.authorize_many($1, $2, $3, $4)',
	array(1), binary(substr($secrets, 0, -3)), array('gateway:write'), array('prod'));
fails($responder, '42501', 'what the responder may not', 'SELECT regpilot.secret_digest($1)', $key);
fails($manager, '23514', 'a CHECK of the table', 'UPDATE regpilot.api_key SET requests_per_minute = $1', -1);
fails($manager, '23502', 'a NOT NULL', 'UPDATE regpilot.api_key SET name = $1 WHERE id = $2', undef, $id{first});
fails($manager, '23503', 'a foreign key', 'UPDATE regpilot.api_key SET project_id = $1', $id{first});
fails($manager, '23505', 'a primary key', 'UPDATE regpilot.api_key SET id = $1', $id{first});
fails($manager, '23505', 'a digest that is there', <<~'SQL', $id{first}, binary($key{second}));
	UPDATE regpilot.api_key SET digest = $2::regpilot.secret::bytea WHERE id = $1
	SQL
fails($manager, '22023', 'a wrong argument', 'SELECT regpilot.create_key($1, $2, $3)', $project, 'k', 'moon');

# raised, and returned, from functions
$site->sql(<<~'SQL');
	CREATE FUNCTION tell(secret regpilot.secret) RETURNS text LANGUAGE plpgsql AS $$
	#print_strict_params on
	DECLARE
		answer record;
	BEGIN
		RAISE LOG 'judging % %', secret, row_to_json(row(secret)) USING DETAIL = secret::text, HINT = format('%L', secret);
		SELECT * INTO STRICT answer FROM regpilot.authorize(secret);
		RAISE LOG 'judged: %', answer;
		SELECT 1 INTO STRICT answer FROM regpilot.authorize(secret) WHERE verdict::text = secret::text;
		RETURN secret;
	END $$;
	CREATE FUNCTION make_and_fail(project uuid) RETURNS text LANGUAGE plpgsql AS $$
	DECLARE
		made record;
	BEGIN
		SELECT * INTO made FROM regpilot.create_key(project, 'in vain');
		RETURN 1 / (length(made.key) - length(made.key));
	END $$;
	SQL
fails($owner, 'P0002', 'RAISE, and a row that is not there', 'SELECT tell($1)', binary($key{in_function}));
fails($owner, '22012', 'a function that makes a key, and fails', 'SELECT make_and_fail($1)', $project);

# deadlock: each has the row that the other wants
$_->call('BEGIN') foreach $manager, $owner;
$manager->call('SELECT regpilot.enable_key($1)', $id{first});
$owner->call('SELECT regpilot.enable_key($1)', $id{second});
my $both = 'SELECT (regpilot.authorize($1)).verdict, regpilot.enable_key($2)';
$manager->send($both, $key, $id{second});
$owner->send($both, $key, $id{first});
my @deadlock = map { $_->receive->{error}{C} // 'none' } $manager, $owner;
is(join(' ', sort @deadlock), '40P01 none', 'a deadlock ends one of two');
$_->call('ROLLBACK') foreach $manager, $owner;

# values that are kept, copied and explained
$site->sql(q{CREATE UNLOGGED TABLE held (secret regpilot.secret, note text CHECK (note <> 'bad'))});
is($owner->call('INSERT INTO held VALUES ($1, $2) RETURNING secret', $key, 'good')->{rows}[0][0],
	'<redacted>', 'a value in a table');
fails($owner, '23514', 'one that fails its CHECK', 'INSERT INTO held VALUES ($1, $2)', $key, 'bad');
is($site->sql('COPY held TO STDOUT'), "<redacted>\tgood", 'COPY in text format');
unlike($site->sql('COPY held TO STDOUT (FORMAT binary)'), qr/\Q${\ sha256($key{first})}\E/, 'and in binary format');
$site->sql('DROP TABLE held');
my $plan = $owner->call(<<~'SQL', $key)->{rows};
	EXPLAIN (VERBOSE, ANALYZE) SELECT regpilot.authorize($1) FROM regpilot.api_key WHERE digest = $1::bytea
	SQL
$told .= join "\n", map { $_->[0] } @$plan;
like($told, qr/Filter:.*redacted|Index Cond:.*redacted/, 'a plan');

# prepared statements and cursors
$owner->call('PREPARE judge (regpilot.secret) AS SELECT regpilot.authorize($1)');
$owner->call('BEGIN');
$owner->call('DECLARE judged CURSOR FOR SELECT regpilot.authorize($1)', $key);
is(scalar @{ $owner->call('FETCH judged')->{rows} }, 1, 'a cursor');
look($owner);
$owner->call('PREPARE TRANSACTION $$judged$$');
$owner->call('ROLLBACK PREPARED $$judged$$');

# slow calls: seen while they run, then cancelled, with their parameters
my $sampler = RegPilot::Wire->new($node, 'regpilot');
my $memory;
my %end = (pg_cancel_backend => '57014', pg_terminate_backend => '57P01');
foreach my $function (sort keys %end)
{
	$responder->send('SELECT (regpilot.authorize($1)).verdict, pg_sleep($2)', binary($key{prod}), 600);
	$node->poll_query_until('regpilot', q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'});
	look($sampler);
	$sampler->call("SELECT '$control'");
	$memory = shared_memory();
	$site->sql("SELECT $function(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep'");
	is($responder->receive->{error}{C}, $end{$function}, "a slow call ended by $function");
}

# what else writes
$site->sql('SELECT regpilot.flush_usage()');
$site->sql(q{SELECT regpilot.flag_stale_keys(now() + interval '1 year')});
$manager->call('SELECT regpilot.review_key($1)', $id{first});
$manager->call('DELETE FROM regpilot.api_key WHERE id = $1', $id{deleted});
$site->sql('ANALYZE');
look($sampler);

# --- places to search

# Adds the rows of all views of the system, of the extension and of
# pg_stat_statements, as a superuser sees them.
sub look
{
	my ($wire) = @_;
	my $names = $wire->call(<<~'SQL')->{rows};
		SELECT format('%I.%I', schemaname, viewname) FROM pg_views
		WHERE schemaname IN ('pg_catalog', 'regpilot', 'public')
		SQL
	foreach my $name (map { $_->[0] } @$names)
	{
		my $answer = $wire->call("SELECT v::text FROM $name v");
		die "$name: $answer->{error}{M}" if $answer->{error};
		$views .= join "\n", $name, map { $_->[0] } @{ $answer->{rows} };
	}
}

# What all processes share, as the postmaster has it; undef if we may not look.
sub shared_memory
{
	my $process = "/proc/$node->{_pid}";
	my $memory = '';
	open my $handle, '<:raw', "$process/mem" or return;
	foreach my $mapping (grep { / rw-s /} split /\n/, slurp_file("$process/maps"))
	{
		my ($from, $to) = map { hex } $mapping =~ /^([0-9a-f]+)-([0-9a-f]+)/;
		sysseek $handle, $from, 0;
		while ($from < $to)
		{
			my $size = sysread($handle, $memory, $to - $from, length $memory) or last;
			$from += $size;
		}
	}
	return $memory;
}

# The standard output of a program; its failure is one of the test, unless allowed.
sub output_of
{
	my ($program, @arguments) = @_;
	my ($stdout, $stderr) = ('', '');
	IPC::Run::run([ $program, @arguments ], '>', \$stdout, '2>', \$stderr);
	die "$program: $stderr" if $? && $program ne 'pg_waldump';
	return $stdout;
}

my $dump = output_of('pg_dump', '--dbname', $node->connstr('regpilot'));
my $dumpall = output_of('pg_dumpall', '--dbname', $node->connstr('postgres'));
my $decoded = $site->sql(q{SELECT data FROM pg_logical_slot_get_changes('slot', NULL, NULL)});
my $statements = slurp_file("$data/pg_stat_tmp/pgss_query_texts.stat");
# "base/16384/16390", of the relations where digests belong
my @own_files = split /\n/, $site->sql(<<~'SQL');
	SELECT pg_relation_filepath(oid) FROM pg_class
	WHERE oid IN ('regpilot.api_key'::regclass, 'regpilot.api_key_digest_key'::regclass)
	SQL
$site->sql('CHECKPOINT');
$node->stop;

my %file;
find(sub { $file{ $File::Find::name =~ s{^\Q$data\E/}{}r } = slurp_file($_) if -f }, $data);
sub files { my ($pattern) = @_; return join "\n", map { $file{$_} } grep { /$pattern/ } sort keys %file }

my @segments = grep { m{^pg_wal/[0-9A-F]{24}$} } sort keys %file;
my $wal_dump = output_of('pg_waldump', '--path', "$data/pg_wal", $segments[0] =~ s{.*/}{}r);

my %place = (
	'the server log' => files(qr{^log/.*\.log$}) . slurp_file($node->logfile),
	'the CSV log' => files(qr{^log/.*\.csv$}),
	'the JSON log' => files(qr{^log/.*\.json$}),
	'the views' => $views,
	'pg_dump' => $dump,
	'pg_dumpall' => $dumpall,
	'logical decoding' => $decoded,
	'the WAL' => files(qr{^pg_wal/}),
	'the data directory' => files(qr{}));
$place{'shared memory'} = $memory if defined $memory;
my %quiet_place = (
	'errors that clients got' => $told,
	'pg_waldump' => $wal_dump,
	'the texts of pg_stat_statements' => $statements,
	'the statistics after the stop' => files(qr{^pg_stat/}));

# --- the search

# Has each place what it should? Those that show a key's project show a key, too.
ok(index($place{$_}, $control) >= 0, "$_ is searched") foreach sort keys %place;
# (No like(), which would print the whole place.)
sub shows { my ($place, $pattern, $what) = @_; ok($place =~ $pattern, $what) }
shows($place{"the $_ log"}, qr/\$1 = '<redacted>'/, "the $_ log: parameters") foreach qw(server CSV JSON);
shows($place{'the server log'}, qr/CONTEXT: .*unnamed portal with parameters: \$1 = '<redacted>'/, 'and those of errors');
shows($place{'the server log'}, qr/Query Text: .*INSERT INTO regpilot\.api_key/, 'and nested plans');
shows($views, qr/SELECT \(regpilot\.authorize\(\$1\)\)\.verdict, pg_sleep\(\$2\)/, 'the views, while a call runs');
shows($views, qr/PREPARE judge /, 'with prepared statements');
shows($views, qr/DECLARE judged CURSOR/, 'and cursors');
shows($quiet_place{'the texts of pg_stat_statements'}, qr/regpilot\.authorize\(\$1\)/, 'the texts of pg_stat_statements');
shows($quiet_place{'the statistics after the stop'}, qr/regpilot\.authorize\(\$1\)/, 'and after the stop');
shows($wal_dump, qr/Btree .* INSERT_LEAF.*rel /, 'pg_waldump');

# The random characters, without the checksum: they are in the key and in its part
# that is the same for all environments.
%place = (%place, %quiet_place);
foreach my $place (sort keys %place)
{
	my @found = grep {
		my $part = substr $key{$_}, -32, 25;
		index($place{$place}, $part) >= 0 || index(lc $place{$place}, unpack 'H*', $part) >= 0
	} sort keys %key;
	is("@found", '', "no key in: $place");
}

# The first part of a digest, as a program may show it, cut short or not
sub forms
{
	my $digest = substr $_[0], 0, 24;
	return (
		unpack('H*', $digest),
		uc unpack('H*', $digest),
		encode_base64($digest, ''),
		join('', map { $_ == 92 ? '\\\\' : $_ < 32 || $_ > 126 ? sprintf '\\%03o', $_ : chr } unpack 'C*', $digest));
}

my %digest = map { $_ => sha256($key{$_}) } keys %key;
# those are for who may read the table
s/^COPY regpilot\.api_key .*?^\\\.$//msg or die foreach @place{qw(pg_dump pg_dumpall)};
shows($dump, unpack('H*', $digest{first}), 'digests are in the dump of the keys');
delete $place{'logical decoding'};
foreach my $place (sort keys %place)
{
	my @found = grep {
		my $digest = $digest{$_};
		grep { index($place{$place}, $_) >= 0 } forms($digest)
	} sort keys %digest;
	is("@found", '', "no digest in: $place");
}

# Its bytes
my $own_file = join '|', map { quotemeta } @own_files;
shows(files(qr/^($own_file)$/), qr/\Q$digest{first}\E/, 'digests are in the files of the keys');
my $other_files = files(qr/^(?!($own_file)$|pg_wal\/)/);
is(join(' ', grep { index($other_files, $digest{$_}) >= 0 } sort keys %digest), '', 'and in no other');

# The WAL is a stream of records, but for a header on each page.
my ($stream, @pages) = ('');
foreach my $segment (@segments)
{
	my ($log, $number) = map { hex } $segment =~ /(.{8})(.{8})$/;
	my $size = length $file{$segment};
	for (my $page = 0; $page < $size; $page += 8192)
	{
		my $header = $page ? 24 : 40;
		push @pages, [ length $stream, ($log << 32) + $number * $size + $page + $header ];
		$stream .= substr $file{$segment}, $page + $header, 8192 - $header;
	}
}
my @records = map { /lsn: (\w+)\/(\w+),/ ? [ (hex($1) << 32) + hex $2, $_ ] : () } split /\n/, $wal_dump;

# The record that a position in the stream belongs to
sub record_at
{
	my ($at) = @_;
	my ($start, $lsn) = @{ (grep { $_->[0] <= $at } @pages)[-1] };
	$lsn += $at - $start;
	return (grep { $_->[0] <= $lsn } @records)[-1][1];
}

my ($written, %elsewhere) = (0);
foreach my $name (sort keys %digest)
{
	for (my $at = -1; ($at = index $stream, $digest{$name}, $at + 1) >= 0; $written++)
	{
		my $record = record_at($at);
		my @relations = map { "base/$_" } $record =~ /rel \d+\/(\d+\/\d+)/g;
		$elsewhere{$record} = 1 if !@relations || grep { !/^($own_file)$/ } @relations;
	}
}
cmp_ok($written, '>=', 10, 'digests are in the WAL');
is(join("\n", sort keys %elsewhere), '', 'in records of their table and index only');

done_testing();
