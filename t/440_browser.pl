# The dashboard in a browser: Debian's Chromium, without a window, driven by
# t/clients/dashboard.mjs.
#
# REGPILOT_TEST_SCREENSHOTS=DIR keeps a picture of each view and dialog in that directory, which
# the user who runs the tests must be able to write to. The README's are among them,
# those of docs/: dashboard.png and overview.png.

use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Utils;
use RegPilot::Client;
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new;
my %password = (alice => $site->add_person('alice', admin => 1));

# --- a project with keys in all states, and a day and a month of traffic

my $shop = $site->sql(q{SELECT regpilot.create_project('Web shop', 'growth')});
my %key;
foreach (
	[ 'Checkout service', 'prod' ],
	[ 'Product search', 'prod' ],
	[ 'Support assistant', 'prod' ],
	[ 'Support assistant, trial', 'staging' ],
	[ 'Nightly evaluation', 'ci' ],
	[ 'Notebooks of the data team', 'dev' ],
	[ 'Translation', 'prod' ],
	[ 'Workshop in May', 'dev' ],
	[ 'Old newsletter', 'prod' ])
{
	my ($name, $environment) = @$_;
	$key{$name} = $site->sql("SELECT key_id FROM regpilot.create_key('$shop', '$name', '$environment')");
}
# name, model, requests a day, percent failed, ms, tokens
my @traffic = (
	[ 'Checkout service', 'prod', 'llama-3.3-70b', 2600, 1, 900, 420 ],
	[ 'Product search', 'prod', 'mistral-small', 4100, 0.4, 240, 180 ],
	[ 'Support assistant', 'prod', 'llama-3.3-70b', 1900, 2, 1400, 900 ],
	[ 'Support assistant, trial', 'staging', 'qwen3-32b', 300, 6, 1900, 950 ],
	[ 'Nightly evaluation', 'ci', 'qwen3-32b', 120, 0, 700, 2400 ],
	[ 'Notebooks of the data team', 'dev', 'mistral-small', 80, 3, 400, 700 ]);
$site->sql("SELECT setseed(0.42)" . join '', map {
		my ($name, $environment, $model, $daily, $failed, $ms, $tokens) = @$_;
		<<~SQL;
		;INSERT INTO regpilot.request_log (at, project_id, key_id, status, latency_ms, first_byte_ms, prompt_tokens,
			completion_tokens, environment, model)
		SELECT at, '$shop', '$key{$name}', CASE WHEN failed THEN (ARRAY[429, 500, 502, 400])[1 + 3 * random()] ELSE 200 END,
			ms, ms * 0.4, tokens * 0.8, CASE WHEN failed THEN 0 ELSE tokens * 0.2 END, '$environment', '$model'
		FROM generate_series(1, $daily * 1.5) n,
			LATERAL (SELECT now() - interval '1 minute' - n * interval '36 hours' / ($daily * 1.5)) a(at),
			LATERAL (SELECT n > 0 AND random() * 100 < $failed, ($ms * exp(random() + random() - 1))::int, ($tokens * (0.5 + random()))::int) r(failed, ms, tokens)
		WHERE random() < 0.6 + 0.4 * sin(extract(epoch FROM at) / 86400 * 2 * pi())
		SQL
	} @traffic);
$site->sql(q{SELECT regpilot.roll_up_request_log(now() - interval '2 days')});
$site->sql(<<~SQL);
	INSERT INTO regpilot.key_usage (key_id, environment, total_requests, failed_requests, prompt_tokens, completion_tokens, last_used_at)
	SELECT key_id, environment, 30 * count(*), 30 * count(*) FILTER (WHERE status >= 400), 30 * sum(prompt_tokens),
		30 * sum(completion_tokens), max(at)
	FROM regpilot.request_log
	GROUP BY key_id, environment;
	UPDATE regpilot.api_key SET created_at = now() - (20 + 3 * length(name)) * interval '1 day' WHERE project_id = '$shop';
	UPDATE regpilot.api_key SET flagged_at = now() - interval '2 days', created_at = now() - interval '120 days'
	WHERE id IN ('$key{Translation}');
	UPDATE regpilot.api_key SET expires_at = now() - interval '20 days' WHERE id = '$key{'Workshop in May'}';
	UPDATE regpilot.api_key SET expires_at = now() + interval '4 days' WHERE id = '$key{'Nightly evaluation'}';
	SELECT regpilot.revoke_key('$key{'Old newsletter'}', 'The newsletter has moved');
	SQL
my $successor = $site->sql("SELECT key_id FROM regpilot.rotate_key('$key{'Support assistant'}')");

# --- what another person may see nothing of, and what is no text but markup

my $other = $site->sql(q{SELECT regpilot.create_project('Secret plans', 'free')});
my ($other_key, $other_hint) = split /\|/, $site->sql("SELECT key_id, hint FROM regpilot.create_key('$other', 'Hidden key')");
$password{bob} = $site->add_person('bob', projects => [$shop]);

my $image = '<img src=x onerror="window.hacked=1">';
my $script = '"><script>window.hacked=1</script>';
my $person = '<img src=x onerror=window.hacked=1>';
my $hostile = $site->sql("SELECT regpilot.create_project('$image', 'enterprise')");
$password{$person} = $site->add_person($person, admin => 1, projects => [$hostile]);
my @hostile_keys = map { $site->sql("SELECT key_id FROM regpilot.create_key('$hostile', '$_')") } $script, $image;
$site->sql(<<~SQL);
	ALTER TABLE regpilot.api_key DROP CONSTRAINT api_key_environment_check;
	ALTER TABLE regpilot.key_usage DROP CONSTRAINT key_usage_environment_check;
	UPDATE regpilot.api_key SET environment = '$image', hint = '$script', flagged_at = now(), created_by = '$image' WHERE project_id = '$hostile';
	INSERT INTO regpilot.key_usage (key_id, environment, total_requests, failed_requests, prompt_tokens, completion_tokens, last_used_at)
	VALUES ('$hostile_keys[0]', '$script', 7, 1, 7, 7, now() - interval '1 day');
	INSERT INTO regpilot.request_log (at, project_id, key_id, status, latency_ms, first_byte_ms, prompt_tokens,
		completion_tokens, environment, model)
	SELECT now() - interval '1 minute', '$hostile', '$hostile_keys[0]', 200, 5, 5, 5, 5, environment, model
	FROM unnest(ARRAY['$image', '$script']) environment, unnest(ARRAY['$image', '$script']) model;
	SELECT regpilot.roll_up_request_log(now() - interval '1 day');
	SET SESSION AUTHORIZATION "$person";
	SELECT regpilot.revoke_key('$hostile_keys[1]', '$script');
	SQL

my $shots = $ENV{REGPILOT_TEST_SCREENSHOTS} // "$site->{dir}/screenshots";
mkdir $shots;
mkdir "$site->{dir}/home";
my $config = {
	url => $site->url,
	home => "$site->{dir}/home",
	screenshots => $shots,
	admin => { role => 'alice', password => $password{alice} },
	member => { role => 'bob', password => $password{bob} },
	shop => { id => $shop, name => 'Web shop', key => $key{'Checkout service'}, flagged => $key{Translation}, rotated => $successor },
	other => { id => $other, name => 'Secret plans', key => $other_key, keyName => 'Hidden key', hint => $other_hint },
	hostile => {
		id => $hostile,
		keys => \@hostile_keys,
		person => { role => $person, password => $password{$person} },
		image => $image,
		script => $script,
	},
};

# Two wait most of the time, for what the page shows by itself.
my @command = ('node', 't/clients/dashboard.mjs');
my @waiting = map { start_client($site, $config, @command, $_) } qw(life keyboard);
run_client($site, $config, @command, $_) foreach qw(views member markup);
finish_client($_) foreach @waiting;

done_testing();
